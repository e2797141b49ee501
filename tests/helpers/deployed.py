"""Deployed directories of small models of OpenMMLab, with random weights."""

import copy
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import mmgdrq
from mmgdrq.deploy import save_folded
from mmgdrq.deploy.engines import find_engine
from mmgdrq.deploy.export.writer import block_model, write_part
from mmgdrq.openmmlab.config_parts import without_weights
from mmgdrq.openmmlab.deployed.building import model_config
from mmgdrq.openmmlab.deployed.image_pipeline import make_pipeline
from mmgdrq.openmmlab.pipeline_json import write_pipeline
from mmgdrq.quantized_model.dense_parts import example_inputs

PREDICTIONS = ('_cls', '_reg', '_obj', '_seg')
QUANT = dict(weight=dict(bits=4), activation=dict(bits=8))


def deploy_random(cfg: Config, out: Path, images: list, engines=('onnxruntime',), prepare=None) -> Path:
    """Write the graphs and the pipeline file of a config's model.

    Args:
        cfg: whole config, with a test pipeline.
        out: directory to write.
        images: BGR arrays; the ranges of the activations come from them.
        engines: profiles of the graphs.
        prepare: what to do to the model before it is quantized.
    """
    cfg = Config({**cfg.to_dict(), 'custom_hooks': [dict(type='mmgdrq.GDRQHook', **QUANT)]})
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    with torch.no_grad():
        model = MODELS.build(without_weights(model_config(cfg)))
    make_lively(model)
    if prepare is not None:
        prepare(model)
    mmgdrq.quantize(model, **QUANT)
    batches = [pseudo_collate([make_pipeline(cfg)(image)]) for image in images]
    mmgdrq.calibrate(model, batches, progress=False)

    def run(target):
        return [target.test_step(batch) for batch in copy.deepcopy(batches)]

    folded = mmgdrq.fold(model, example=run)

    def graphs(folder):
        written = {}
        for engine in engines:
            (folder / engine).mkdir()
            written[engine] = write_graphs(folded, run, folder / engine, engine)
        return written

    save_folded(folded, out, cfg.pretty_text, graphs)
    write_pipeline(out, folded, cfg)
    return out


def write_graphs(folded: nn.Module, run, folder: Path, engine: str) -> dict:
    """Write a graph for each part, as the tool does, but compare nothing."""
    blocks = block_model(folded, find_engine(engine))
    inputs, _ = example_inputs(blocks.parts, lambda: run(blocks.model))
    written = [write_part(blocks, part, inputs[part.name], folder / f'{part.name}.onnx') for part in blocks.parts]
    return {exported.part.name: exported.entry() for exported in written}


def make_lively(model: nn.Module) -> None:
    """Give norms and prediction layers values that differ, so that boxes and classes do."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
        elif type(module).__name__ == 'L2Norm':
            nn.init.constant_(module.weight, 20)
        elif any(word in name for word in PREDICTIONS) and hasattr(module, 'weight'):
            module.weight.data *= 3
