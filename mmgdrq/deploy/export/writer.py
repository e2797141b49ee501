"""Write the dense parts of a folded model as standard ONNX graphs."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ExportError
from ...layers import AffineQuantizer
from ...layers.walk import all_modules
from ...quant import step_of
from ...quantized_model.dense_parts import Part, example_inputs, parts_of, run_part
from ..engines.block import PROFILES, Block, Grid, block_of
from ..engines.requantized_output import trained_grids
from ..engines.results import plan_results
from ..folding.affine_inputs import refuse_affine
from ..folding.folded_layers import STORED, RoundedInput
from ..folding.merge_batchnorm import merge_norms
from ..verification.free_axes import BATCH, SIZE, Axes, right_axes
from ..verification.replaced_parts import check_plugging
from .block_module import BlockModule
from .block_variants import as_float, low_bit
from .exported import Exported
from .optimize import tidy
from .pooling import any_size_pooling

OPSET = 17
AXES = {0: 'batch', 2: 'height', 3: 'width'}


def export(
    folded: nn.Module,
    run: Callable[[nn.Module], object],
    out: Path,
    profile: str = 'openvino',
    form: Callable[[Block], Block] = low_bit,
    check: bool = True,
) -> list[Exported]:
    """Write ``<part>.onnx`` for every dense part of a folded OpenMMLab model.

    Batch and image size of a graph are free where it computes on other ones what torch computes there. Some operators
    turn sizes into constants: then the image size is that of the sample images, or the graph takes one image at a time.

    Args:
        folded: result of :func:`mmgdrq.fold`, on any device.
        run: runs the model it is given, a copy on the CPU, on sample images and returns its results.
        out: existing directory.
        profile: how the nodes of the quantized blocks look, see :mod:`mmgdrq.deploy.engines.nodes`.
        form: for comparisons, one of :data:`mmgdrq.deploy.export.block_variants.FORMS`.
        check: compare the results of the model with those that it has with its parts plugged in, and run the graphs
            on other batch and image sizes.

    Raises:
        ExportError: an unknown profile, a model without known seams, an operator that ONNX lacks, or no engine is
            installed that could check the graphs.
    """
    if profile not in PROFILES:
        raise ExportError(f'export: profile {profile!r} is unknown. Expected one of {", ".join(PROFILES)}')
    model, exported = with_blocks(copy.deepcopy(folded).cpu(), profile, form)
    parts = parts_of(model)
    inputs, results = example_inputs(parts, lambda: run(model))
    if check:
        check_plugging(model, parts, run, results)
    paths = [Path(out, f'{part.name}.onnx') for part in parts]
    return [_export_part(part, inputs[part.name], path, exported, profile, check) for part, path in zip(parts, paths)]


def export_float(folded: nn.Module, parts: list[Exported], out: Path, profile: str) -> list[Path]:
    """Write the same graphs in float, to time them beside ``parts``; nothing is checked again.

    Args:
        folded: the model that ``parts`` were made of.
        parts: result of :func:`export`; the examples and free axes are theirs.
        out: existing directory.
        profile: that of ``parts``.

    Returns:
        The ONNX file of each part.
    """
    model, exported = with_blocks(copy.deepcopy(folded).cpu(), profile, as_float)
    paths = [Path(out, like.path.name) for like in parts]
    for part, like, path in zip(parts_of(model), parts, paths):
        _write(part, like.example, path, exported, like.free)
    return paths


def with_blocks(
    folded: nn.Module, profile: str, form: Callable[[Block], Block] = low_bit
) -> tuple[nn.Module, list[BlockModule]]:
    """A copy of a folded model whose folded layers are blocks, and the list that their export fills."""
    refuse_affine(folded.gdrq_folded)
    model, exported = merge_norms(folded), []
    trained = _checked_grids(folded)
    names: dict[int, BlockModule] = {}
    for name, entry in model.gdrq_folded.items():
        layer = model.get_submodule(name)
        if entry['kind'] == STORED:
            layer.activation_quantizer = _rounded_input(layer.activation_quantizer, entry)
            continue
        block = BlockModule(form(block_of(name, layer, entry, profile)), exported)
        block.trained = trained.get(entry['norm'] or name)
        names[id(layer)] = block
    for parent in list(all_modules(model)):
        for attribute, child in list(parent._modules.items()):
            if id(child) in names:
                parent._modules[attribute] = names[id(child)]
    return model, exported


def _checked_grids(folded: nn.Module) -> dict[str, Grid]:
    """The grids of results that the model was trained with; each belongs to the end of a block."""
    grids = trained_grids(folded)
    ends = {entry['norm'] or name for name, entry in folded.gdrq_folded.items()}
    if set(grids) - ends:
        raise ExportError(
            f'export: the model was trained with a rounded result of {min(set(grids) - ends)}, which is not the end of '
            'a block when it runs on the sample images. Train it without `deploy`'
        )
    return grids


def _rounded_input(quantizer: nn.Module, entry: dict[str, Any]) -> nn.Module:
    if not entry['input']:
        return quantizer
    rounded = RoundedInput(*entry['input'])
    if isinstance(quantizer, AffineQuantizer):
        rounded.step.copy_(quantizer.scale)
    else:
        levels = quantizer.spec.levels(entry['input'][0] < 0)
        rounded.step.copy_(step_of(quantizer.threshold.detach().abs(), levels))
    return rounded


def _export_part(part: Part, x: Tensor, path: Path, exported: list[BlockModule], profile: str, check: bool) -> Exported:
    """The graph with as many free axes as are right."""
    free = possible = BATCH | SIZE if part.name == 'dense' else BATCH
    _write(part, x, path, exported, free)
    if profile == 'onnxruntime' and exported:
        plan_results(path, exported)  # they depend on who reads them, which only the graph tells
        _write(part, x, path, exported, free)
    found = Exported(part, path, x, list(exported), free)
    right = right_axes(found, profile, free) if check else free
    while right != free:
        free, x = right, x if right & BATCH else x[:1]
        _write(part, x, path, exported, free)
        found = Exported(part, path, x, list(exported), free)
        right = right_axes(found, profile, free)
    if right != possible:
        _say_what_is_fixed(found, right)
    return found


def _write(part: Part, x: Tensor, path: Path, exported: list[BlockModule], free: Axes) -> None:
    part.module.eval()
    results = run_part(part, x)
    if not free & BATCH and any(len(result) != 1 for result in results):
        raise ExportError(
            f'export: the graph of {part.name} would have the number of sample images as a constant, and cannot take '
            'them one by one: not every result is one for each image. The folded model runs in torch'
        )
    names = [f'output_{i}' for i in range(len(results))]
    axes = {name: _named(name, tensor, free) for name, tensor in zip(['input', *names], [x, *results])}
    exported.clear()
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
    tidy(path)


def _named(name: str, tensor: Tensor, free: Axes) -> dict[int, str]:
    return {axis: f'{name}_{AXES[axis]}' if axis else AXES[0] for axis in sorted(free) if axis < tensor.dim()}


def _say_what_is_fixed(found: Exported, free: Axes) -> None:
    size = 'x'.join(str(n) for n in found.example.shape[1:])
    fixed = [] if free & BATCH else ['runs one input at a time']
    fixed += [] if free & SIZE else [f'takes inputs of {size} only']
    warnings.warn(
        f'export: {found.path.name} {" and ".join(fixed)}: sizes of the sample images are constants in it',
        stacklevel=4,
    )
