"""Find where an engine rounds more than the quantized model: from made-up inputs, before any training."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor, nn

from ..errors import ExportError
from ..layers import activation_quantizers
from ..layers.walk import all_modules
from ..quantized_model.dense_parts import Part, example_inputs, parts_of
from ..quantized_model.stages import set_stage
from .engines import Engine
from .export.writer import block_model, write_part
from .folding.fold import fold

Run = Callable[[nn.Module], object]
SIZES = (64, 128, 224, 32, 320, 512)
"""Edges of made-up images, tried in this order: some networks need a certain size."""


@dataclass(frozen=True)
class QuantizedOutput:
    """One quantized layer whose output an engine changes.

    Attributes:
        layer: its name.
        tail: the BN behind it, or the layer itself: what gives the output.
        lowest: lowest weight integer.
        requantized: whether the output is rounded to 8 bits; the bias always is.
    """

    layer: str
    tail: str
    lowest: int
    requantized: bool


def quantized_outputs(model: nn.Module, engine: Engine, run: Optional[Run] = None) -> list[QuantizedOutput]:
    """The layers of a quantized model whose bias, and output, the engine rounds.

    Args:
        model: a quantized model; not changed. Its ranges need not be set.
        engine: one that simulates.
        run: runs the model it is given on sample images; None: made-up inputs.

    Raises:
        ExportError: the model's dense parts cannot be found or traced.
    """
    probe = copy.deepcopy(model).cpu().eval()
    set_stage(probe, 'quantize')
    for quantizer in activation_quantizers(probe):
        quantizer.set_range(torch.ones(()), signed=True)
    run = run or made_up_run(probe)
    folded = fold(probe, example=run)
    lowered = block_model(folded, engine)
    inputs, _ = example_inputs(lowered.parts, lambda: run(lowered.model))
    with tempfile.TemporaryDirectory() as folder:
        parts = [write_part(lowered, part, inputs[part.name], Path(folder, 'part.onnx')) for part in lowered.parts]
    blocks = {module.block.name: module for part in parts for module in part.blocks}
    return [
        QuantizedOutput(name, folded.gdrq_folded[name].norm or name, module.block.lowest, module.output.own)
        for name, module in blocks.items()
        if module.changes_output()
    ]


@torch.no_grad()
def made_up_run(model: nn.Module) -> Run:
    """A function that runs the dense parts of a model of this kind on random tensors.

    Raises:
        ExportError: no size of image suits the model.
    """
    channels = next((m.in_channels for m in all_modules(model) if isinstance(m, nn.Conv2d)), 3)
    errors = []
    for size in SIZES:
        image = torch.rand(2, channels, size, size)

        def run(target: nn.Module, image: Tensor = image) -> object:
            return [_run_part(target, part, image) for part in parts_of(target)]

        try:
            run(model)
        except ExportError:
            raise
        except Exception as error:  # what a network raises on sizes that do not suit it, or without data samples
            errors.append(f'{size}: {str(error).splitlines()[0] if str(error) else type(error).__name__}')
            continue
        return run
    raise ExportError(
        f'deploy: {type(model).__name__} does not run on made-up images of edge {"; ".join(errors)}. Call '
        'mmgdrq.deploy.simulate(model, run=...) with a function that runs it on real ones'
    )


def _run_part(model: nn.Module, part: Part, image: Tensor) -> object:
    if part.name == 'dense':
        return part.module(image)
    return part.module.model(_roi_features(model.roi_head, part.name))


def _roi_features(roi_head: nn.Module, name: str) -> Tensor:
    """Random features of two RoIs for the RoI head ``name``, such as ``'bbox_head_1'``."""
    kind, _, number = name.partition('_head')
    extractor = getattr(roi_head, f'{kind}_roi_extractor', None) or roi_head.bbox_roi_extractor
    if isinstance(extractor, nn.ModuleList):
        extractor = extractor[int(number.strip('_') or 0)]
    features = torch.rand(2, extractor.out_channels, *extractor.roi_layers[0].output_size)
    return roi_head.shared_head(features) if getattr(roi_head, 'with_shared_head', False) else features
