"""A training step with made-up data, for dev/zoo_sweep.py."""

import traceback
from typing import Callable

import torch
from mmengine.logging import MessageHub
from torch import nn
from zoo_data import batches, image_channels
from zoo_models import describe

from mmgdrq.layers import ActivationQuantizer, is_quantized

SIZES = (64, 128, 224, 256, 384, 512, 640, 32)
"""Image sizes that are tried, in this order."""


def take_step(zoo: str, model: nn.Module, row: dict, build_float: Callable[[], nn.Module]) -> None:
    """Forward and backward on made-up data: with the loss if possible, else with the sum of the raw outputs.

    Where neither works, the float model is tried in the same way, and ``row['reason']`` says what came out.
    """
    errors = try_step(zoo, model, row)
    if row['step'] == 'not run':
        model.init_weights()  # some heads give impossible boxes with the weights of their layers' constructors
        errors = try_step(zoo, model, row)
    if row['step'] == 'not run':
        row['step errors'] = errors
        found: dict = {'step': 'not run'}
        of_float = try_step(zoo, build_float(), found)
        alone = 'the float model takes none either' if found['step'] == 'not run' else 'the float model takes one'
        row['reason'] = f'no training step here, {alone} ({(of_float or errors)[0]})'
    else:
        check_step(model, row)


def try_step(zoo: str, model: nn.Module, row: dict) -> list[str]:
    """Take the first step that works, and note it in ``row``; returns the errors of those before it."""
    model.train()
    hub = MessageHub.get_current_instance()
    for key in ('epoch', 'iter', 'max_epochs', 'max_iters'):  # heads ask how far the training is
        hub.update_info(key, int(key.startswith('max')))
    errors = []
    for size in sizes_for(model):
        for mode, run in attempts(zoo, model, size):
            try:
                run().backward()
            except Exception as error:
                errors.append(f'{mode} at {size}: {describe(error)}')
                row['step trace'] = traceback.format_exc()[-1200:]
                continue
            row['step'], row['size'] = mode, size
            if mode != 'loss':
                row['loss error'] = errors[0]
            return errors
    return errors


def sizes_for(model: nn.Module) -> list[int]:
    """Image sizes, small ones first; before them the one that a backbone is made for, if it is not large."""
    made_for = getattr(getattr(model, 'backbone', None), 'img_size', None)
    made_for = made_for[0] if isinstance(made_for, (list, tuple)) else made_for
    first = [made_for] if isinstance(made_for, int) and made_for <= 256 else []
    return [*first, *(size for size in SIZES if size not in first)]


def attempts(zoo: str, model: nn.Module, size: int) -> list:
    """Ways to take a step, best first: (name, function that returns a scalar)."""
    ways = [('loss', lambda b=batch: loss_of(zoo, model, b, size)) for batch in batches(zoo, model, size)]
    tensor = torch.randn(2, image_channels(model), size, size)
    return [*ways, ('outputs', lambda: outputs_of(zoo, model, tensor))]


def loss_of(zoo: str, model: nn.Module, batch: dict, size: int) -> torch.Tensor:
    """The sum of the losses, as mmengine computes it."""
    preprocessor = model.data_preprocessor
    preprocessor.batch_augments = None  # they pad small images to the size of the real training
    if zoo == 'mmseg':
        preprocessor.size, preprocessor.size_divisor = (size, size), None
    losses = model(**preprocessor(batch, training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    if not torch.isfinite(total):
        raise ValueError('the loss is not finite')
    return total


def outputs_of(zoo: str, model: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """The sum of what the backbone, the neck and dense heads return."""

    inner = getattr(model, 'detector', None) or getattr(model, 'student', None) or model

    def forward(images):
        if zoo == 'mmpretrain':
            return type(model).forward(model, images, mode='tensor')
        found = inner.extract_feat(images)
        for head in ('bbox_head', 'decode_head', 'rpn_head'):
            if hasattr(inner, head):
                return getattr(inner, head)(found)
        return found

    model.forward = forward  # the call of the model is what quantizers take for an iteration
    try:
        return sum(t.float().mean() for t in tensors(model(tensor)) if t.requires_grad)
    finally:
        del model.forward


def tensors(value) -> list:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []


def check_step(model: nn.Module, row: dict) -> None:
    """No layer that got a gradient was bypassed."""
    idle, bypassed = [], []
    for name, layer in model.named_modules():
        if is_quantized(layer) and isinstance(layer.activation_quantizer, ActivationQuantizer):
            grad = layer.stored_weight().grad
            if not layer.activation_quantizer.is_ready():
                used = grad is not None and bool(grad.abs().sum() > 0)
                (bypassed if used else idle).append(name)
    if bypassed:
        row['problems'].append(f'{len(bypassed)} layers are bypassed, such as {bypassed[0]}')
    row['idle'] = len(idle)
    row['idle layers'] = idle[:5]
