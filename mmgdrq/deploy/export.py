"""Write the dense parts of a folded model as standard ONNX graphs."""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import ExportError
from .blocks import PROFILES, BlockModule, block_of
from .merge import merge_norms
from .outputs import quantize_outputs
from .seams import Part, example_inputs, parts_of

OPSET = 17


def export(
    folded: nn.Module, run: Callable[[nn.Module], object], out: Path, profile: str = 'openvino'
) -> dict[str, Any]:
    """Write ``<part>.onnx`` for every dense part of a folded OpenMMLab model.

    Args:
        folded: result of :func:`mmgdrq.fold`.
        run: runs the model it is given on sample images.
        out: existing directory.
        profile: the form of the quantized blocks, see :mod:`mmgdrq.deploy.blocks`.

    Returns:
        Part name -> ``file``, ``tree`` (the structure of its results), ``blocks`` (number of quantized blocks) and
        ``sha256``.

    Raises:
        ExportError: an unknown profile, a model without a known seam, an operator that ONNX lacks.
    """
    if profile not in PROFILES:
        raise ExportError(f'export: profile {profile!r} is unknown. Expected one of {", ".join(PROFILES)}')
    model, exported = with_blocks(folded, profile)
    parts = parts_of(model)
    inputs = example_inputs(parts, lambda: run(model))
    return {part.name: _export_part(part, inputs[part.name], Path(out), exported) for part in parts}


def with_blocks(folded: nn.Module, profile: str) -> tuple[nn.Module, list[BlockModule]]:
    """A copy of a folded model whose folded layers are blocks, and the list that their export fills."""
    model, exported = merge_norms(folded), []
    names: dict[int, BlockModule] = {}
    for name, entry in model.gdrq_folded.items():
        layer = model.get_submodule(name)
        names[id(layer)] = BlockModule(block_of(name, layer, entry, profile), exported)
    for parent in list(model.modules()):
        for attribute, child in list(parent._modules.items()):
            if id(child) in names:
                parent._modules[attribute] = names[id(child)]
    return model, exported


def _export_part(part: Part, x: Tensor, out: Path, exported: list[BlockModule]) -> dict[str, Any]:
    module = part.module.eval()
    with torch.no_grad():
        results = module(x)
    names = [f'output_{i}' for i in range(len(results))]
    free = {0: 'batch', 2: 'height', 3: 'width'} if part.name == 'dense' else {0: 'rois'}
    axes = {'input': {k: v for k, v in free.items() if k < x.dim()}}
    axes.update({name: _free_axes(name, result, free) for name, result in zip(names, results)})
    path = out / f'{part.name}.onnx'
    exported.clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the tracer warns of every Python number that it takes as a constant
            torch.onnx.export(
                module,
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
    if exported and exported[0].block.profile == 'onnxruntime':
        integer = [module for module in exported if module.block.limits is not None and module.block.bits <= 8]
        quantize_outputs(path, [module.range for module in integer if not module.is_product()])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return dict(file=path.name, tree=pytree.treespec_dumps(module.tree), blocks=len(exported), sha256=digest)


def _free_axes(name: str, result: Tensor, free: dict[int, str]) -> dict[int, str]:
    return {axis: label if axis == 0 else f'{name}_{label}' for axis, label in free.items() if axis < result.dim()}
