"""Write the dense parts of a folded model as standard ONNX graphs."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import ExportError
from ..quant import step_of
from .block_module import BlockModule
from .blocks import PROFILES, Block, Grid, block_of
from .engine_result import trained_grids
from .forms import low_bit
from .layers import STORED, RoundedInput
from .manifest import file_sha256
from .merge import merge_norms
from .pooling import any_size_pooling
from .results import plan_results
from .seams import Part, example_inputs, parts_of
from .tidy import tidy

OPSET = 17


@dataclass(frozen=True)
class Exported:
    """One part as a graph.

    Attributes:
        part: its module computes in torch what the graph computes.
        path: ONNX file.
        example: the part's first input on the sample images.
        blocks: quantized blocks in the order of the graph; one that is called several times occurs several times.
    """

    part: Part
    path: Path
    example: Tensor
    blocks: list[BlockModule]

    def entry(self) -> dict[str, Any]:
        """What the manifest says about the graph."""
        return dict(
            file=self.path.name,
            tree=pytree.treespec_dumps(self.part.module.tree),
            blocks=len(self.blocks),
            sha256=file_sha256(self.path),
        )


def export(
    folded: nn.Module,
    run: Callable[[nn.Module], object],
    out: Path,
    profile: str = 'openvino',
    form: Callable[[Block], Block] = low_bit,
) -> list[Exported]:
    """Write ``<part>.onnx`` for every dense part of a folded OpenMMLab model.

    Args:
        folded: result of :func:`mmgdrq.fold`.
        run: runs the model it is given on sample images.
        out: existing directory.
        profile: how the nodes of the quantized blocks look, see :mod:`mmgdrq.deploy.nodes`.
        form: for comparisons, one of :data:`mmgdrq.deploy.forms.FORMS`.

    Raises:
        ExportError: an unknown profile, a model without a known seam, an operator that ONNX lacks.
    """
    if profile not in PROFILES:
        raise ExportError(f'export: profile {profile!r} is unknown. Expected one of {", ".join(PROFILES)}')
    model, exported = with_blocks(folded, profile, form)
    parts = parts_of(model)
    inputs = example_inputs(parts, lambda: run(model))
    return [_export_part(part, inputs[part.name], Path(out), exported) for part in parts]


def with_blocks(
    folded: nn.Module, profile: str, form: Callable[[Block], Block] = low_bit
) -> tuple[nn.Module, list[BlockModule]]:
    """A copy of a folded model whose folded layers are blocks, and the list that their export fills."""
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
    for parent in list(model.modules()):
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
    levels = quantizer.spec.levels(entry['input'][0] < 0)
    rounded.step.copy_(step_of(quantizer.threshold.detach().abs(), levels))
    return rounded


def _export_part(part: Part, x: Tensor, out: Path, exported: list[BlockModule]) -> Exported:
    part.module.eval()
    path = out / f'{part.name}.onnx'
    _write(part, x, path, exported)
    if exported and exported[0].block.profile == 'onnxruntime':
        plan_results(path, exported)  # they depend on who reads them, which only the graph tells
        _write(part, x, path, exported)
    return Exported(part, path, x, list(exported))


def _write(part: Part, x: Tensor, path: Path, exported: list[BlockModule]) -> None:
    with torch.no_grad():
        results = part.module(x)
    names = [f'output_{i}' for i in range(len(results))]
    free = {0: 'batch', 2: 'height', 3: 'width'} if part.name == 'dense' else {0: 'rois'}
    axes = {'input': {k: v for k, v in free.items() if k < x.dim()}}
    axes.update({name: _free_axes(name, result, free) for name, result in zip(names, results)})
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


def _free_axes(name: str, result: Tensor, free: dict[int, str]) -> dict[int, str]:
    return {axis: label if axis == 0 else f'{name}_{label}' for axis, label in free.items() if axis < result.dim()}
