"""What happens once a training iteration, for all quantizers of a model together.

An iteration is one forward pass of the root module in training mode. Before it, the statistics of the
last iteration become one step of every running threshold; during it, each quantizer adds up what it sees,
however often a shared layer is called; after it, the sums of all ranks are added up in one collective.
Recomputed forward passes (activation checkpointing) run after it and are not counted twice.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers.activation_quantizer import ActivationQuantizer, settle_first_ranges, step_thresholds
from ..layers.quantizer import FLOAT, keep_positive
from ..layers.walk import activation_quantizers, quantized_layers
from ..layers.weight_quantizer import WeightQuantizer
from .replaced_layers import refuse_new_float_layers, remember_layers


def manage(model: nn.Module) -> None:
    """Let the forward pass of ``model`` define the iteration of the quantizers inside it."""
    _name_layers(model)
    for quantizer in activation_quantizers(model):
        quantizer.managed = True
        quantizer.observing = False
    for module in model.modules():
        if isinstance(module, WeightQuantizer):
            module.cache.per_iteration = True
    remember_layers(model)
    model.register_forward_pre_hook(_begin)
    model.register_forward_hook(_end)


def manage_registered(model: nn.Module) -> None:
    """:func:`manage` for a model that was built with quantized layers, unless it is managed already."""
    weights = [m for m in model.modules() if isinstance(m, WeightQuantizer)]
    managed = [q.managed for q in activation_quantizers(model)] + [q.cache.per_iteration for q in weights]
    if not all(managed):
        manage(model)


def _name_layers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, (ActivationQuantizer, WeightQuantizer)) and not module.layer_name:
            module.layer_name = name.rpartition('.')[0]


def is_frozen(model: nn.Module) -> bool:
    """Whether :func:`mmgdrq.freeze` holds the ranges of ``model``."""
    return getattr(model, 'gdrq_frozen', False)


def _begin(model: nn.Module, args) -> None:
    frozen = is_frozen(model)
    observing = model.training and not frozen
    modules = list(model.modules())
    quantizers = [m for m in modules if isinstance(m, ActivationQuantizer)]
    weights = [m for m in modules if isinstance(m, WeightQuantizer)]
    refuse_new_float_layers(model, len(quantizers) + len(weights))
    if model.training and frozen:
        for module in modules:
            if isinstance(module, _BatchNorm):
                module.eval()
    for quantizer in quantizers + weights:
        quantizer.hold(frozen)
    keep_positive(quantizers + weights)  # here for compiled models; calls outside of this pass do it by themselves
    step_thresholds(quantizers)
    for quantizer in quantizers:
        quantizer.observing, quantizer.frozen = observing, model.training and frozen
    for quantizer in weights:
        if quantizer.training:  # the weight may have changed
            quantizer.cache.clear()
    if observing:
        _renew_searched(model)


def _end(model: nn.Module, args, output) -> None:
    if not model.training:
        return
    for quantizer in activation_quantizers(model):
        quantizer.observing = False
    quantizers = [q for q in activation_quantizers(model) if q.mode != FLOAT]  # the same ones on all ranks
    if not quantizers:
        return
    if dist.is_available() and dist.is_initialized():
        _add_over_ranks(quantizers)
    settle_first_ranges(quantizers)


def _renew_searched(model: nn.Module) -> None:
    for layer in quantized_layers(model):
        quantizer = layer.weight_quantizer
        if isinstance(quantizer, WeightQuantizer) and quantizer.spec.range == 'search':
            quantizer.renew(layer.filters())


def _add_over_ranks(quantizers: list[ActivationQuantizer]) -> None:
    summed = [q for q in quantizers if q.spec.range != 'minmax']
    largest = [q for q in quantizers if q.spec.range == 'minmax']
    for operation, chosen in ((dist.ReduceOp.SUM, summed), (dist.ReduceOp.MAX, largest)):
        if not chosen:
            continue
        pending = torch.stack([q.pending for q in chosen])
        dist.all_reduce(pending, operation)
        for quantizer, result in zip(chosen, pending):
            quantizer.pending.copy_(result)
            quantizer.observed = quantizer.spec.range != 'learned' or quantizer.is_fresh()
