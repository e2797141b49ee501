"""Write the dense parts of a folded model as standard ONNX graphs, with the free axes that it is given."""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import ExportError
from ...layers import AffineQuantizer
from ...layers.walk import all_modules
from ...quant import step_of
from ...quantized_model.dense_parts import Part, parts_of, run_part
from ..engines.base import Engine
from ..engines.block import Block, Grid, block_of
from ..engines.requantized_output import trained_grids
from ..folding.affine_inputs import refuse_affine
from ..folding.folded_layers import STORED, FoldedLayer, RoundedInput
from ..folding.merge_batchnorm import merge_norms
from .block_module import BlockModule
from .block_variants import low_bit
from .exported import Axes, Exported
from .graph_reader import GraphReader
from .optimize import optimize
from .pooling import any_size_pooling

OPSET = 17
BATCH: Axes = frozenset({0})
SIZE: Axes = frozenset({2, 3})
AXES = {0: 'batch', 2: 'height', 3: 'width'}


@dataclass(frozen=True)
class BlockModel:
    """A copy of a folded model whose folded layers are blocks.

    Attributes:
        model: on the CPU, in eval mode.
        parts: its dense parts.
        engine: what the blocks compute like.
        exported: filled by each export, in the order of the graph.
    """

    model: nn.Module
    parts: list[Part]
    engine: Engine
    exported: list[BlockModule]


def block_model(folded: nn.Module, engine: Engine, variant: Callable[[Block], Block] = low_bit) -> BlockModel:
    """Copy a folded model and put blocks in the place of its folded layers.

    Args:
        folded: result of :func:`mmgdrq.fold`, on any device.
        engine: that the graphs are for.
        variant: for comparisons, one of :data:`mmgdrq.deploy.export.block_variants.FORMS`.

    Raises:
        ExportError: a layer that no block describes, or a model without known dense parts.
    """
    refuse_affine(folded.gdrq_folded)
    model = merge_norms(copy.deepcopy(folded).cpu())
    exported: list[BlockModule] = []
    trained = _checked_grids(folded)
    blocks: dict[int, BlockModule] = {}
    for name, entry in model.gdrq_folded.items():
        layer = model.get_submodule(name)
        if entry.kind == STORED:
            layer.activation_quantizer = _rounded_input(layer.activation_quantizer, entry)
            continue
        block = variant(engine.adapt(block_of(name, layer, entry)))
        blocks[id(layer)] = BlockModule(block, engine, exported, trained.get(entry.norm or name))
    for parent in list(all_modules(model)):
        for attribute, child in list(parent._modules.items()):
            if id(child) in blocks:
                parent._modules[attribute] = blocks[id(child)]
    return BlockModel(model, parts_of(model), engine, exported)


def _checked_grids(folded: nn.Module) -> Mapping[str, Grid]:
    """The grids of outputs that the model was trained with; each belongs to the end of a block."""
    grids = trained_grids(folded)
    ends = {entry.norm or name for name, entry in folded.gdrq_folded.items()}
    if set(grids) - ends:
        raise ExportError(
            f'export: the model was trained with a rounded result of {min(set(grids) - ends)}, which is not the end of '
            'a block when it runs on the sample images. Train it without `deploy`'
        )
    return grids


def _rounded_input(quantizer: nn.Module, entry: FoldedLayer) -> nn.Module:
    if not entry.input:
        return quantizer
    rounded = RoundedInput(*entry.input)
    if isinstance(quantizer, AffineQuantizer):
        rounded.step.copy_(quantizer.scale)
    else:
        levels = quantizer.spec.levels(entry.input[0] < 0)
        rounded.step.copy_(step_of(quantizer.threshold.detach().reshape(()).abs(), levels))
    return rounded


def possible_axes(part: Part) -> Axes:
    """The axes of a part's input that a graph may leave free: images have any number and size, RoIs any number."""
    return BATCH | SIZE if part.name == 'dense' else BATCH


def write_part(blocks: BlockModel, part: Part, x: Tensor, path: Path) -> Exported:
    """Write the graph of a part with all possible axes free, and with the outputs that its engine requantizes.

    Args:
        blocks: the model of the part.
        part: one of its parts.
        x: first input of the part on the sample images.
        path: ONNX file.

    Raises:
        ExportError: an operator that ONNX lacks.
    """
    free = possible_axes(part)
    found = write_graph(blocks, part, x, path, free)
    if not found.blocks:
        return found
    outputs = blocks.engine.requantize(GraphReader(path, found.blocks))  # only the graph tells who reads what
    for module in found.blocks:
        module.output = outputs.get(module.block.name, module.output)
    return write_graph(blocks, part, x, path, free) if outputs else found


def write_graph(blocks: BlockModel, part: Part, x: Tensor, path: Path, free: Axes) -> Exported:
    """Write the graph of a part with these free axes, with the outputs as they are requantized now.

    Raises:
        ExportError: an operator that ONNX lacks, or a fixed number of images where results are not one per image.
    """
    part.module.eval()
    results = run_part(part, x)
    if not free & BATCH and any(len(result) != 1 for result in results):
        raise ExportError(
            f'export: the graph of {part.name} would have the number of sample images as a constant, and cannot take '
            'them one by one: not every result is one for each image. The folded model runs in torch'
        )
    names = [f'output_{i}' for i in range(len(results))]
    axes = {name: _named(name, tensor, free) for name, tensor in zip(['input', *names], [x, *results])}
    blocks.exported.clear()
    try:
        with warnings.catch_warnings(), any_size_pooling(OPSET):
            warnings.simplefilter('ignore')  # the tracer warns of every Python number that it takes as a constant
            torch.onnx.export(
                part.module,
                (x,),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=['input'],
                output_names=names,
                dynamic_axes=axes,
                do_constant_folding=False,
                autograd_inlining=False,
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise ExportError(f'export: {part.name} does not become ONNX: {str(error).splitlines()[0]}') from error
    optimize(path, blocks.engine.clips_codes)
    return Exported(part, path, x, blocks.engine, list(blocks.exported), free)


def _named(name: str, tensor: Tensor, free: Axes) -> dict[int, str]:
    return {axis: f'{name}_{AXES[axis]}' if axis else AXES[0] for axis in sorted(free) if axis < tensor.dim()}
