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
from ..layers.quantizer import Quantizer, keep_positive
from ..layers.state import FLOAT
from ..layers.walk import activation_quantizers, all_modules, quantized_layers
from ..layers.weight_quantizer import WeightQuantizer
from .replaced_layers import refuse_new_float_layers, remember_layers
from .state import ATTRIBUTE, QuantizedModelState, adopt, read_buffers


def manage(model: nn.Module) -> None:
    """Let the forward pass of ``model`` define the iteration of the quantizers that hold its state."""
    for name, module in model.named_modules():
        if isinstance(module, Quantizer) and not module.layer_name:
            module.layer_name = name.rpartition('.')[0]
    remember_layers(model)
    model.register_forward_pre_hook(_begin)
    model.register_forward_hook(_end)


def manage_registered(model: nn.Module) -> None:
    """:func:`manage` for a model that was built with quantized layers, unless it is managed already."""
    if not all(module.state.managed for module in all_modules(model) if isinstance(module, Quantizer)):
        setattr(model, ATTRIBUTE, QuantizedModelState())
        adopt(model, list(all_modules(model)))
        manage(model)


@torch.compiler.disable
def _begin(model: nn.Module, args) -> None:
    state: QuantizedModelState = getattr(model, ATTRIBUTE)
    if not model.training and not torch.compiler.is_compiling():
        read_buffers(model)
    state.begin(model.training)
    modules = list(all_modules(model))
    quantizers = adopt(model, modules)
    refuse_new_float_layers(model, sum(isinstance(module, Quantizer) for module in modules))
    if model.training and state.frozen:
        for module in modules:
            if isinstance(module, _BatchNorm):
                module.eval()
    for quantizer in quantizers:
        quantizer.hold(state.frozen)
    keep_positive(quantizers)  # here for compiled models; calls outside of this pass do it by themselves
    step_thresholds([q for q in quantizers if isinstance(q, ActivationQuantizer)])
    for quantizer in quantizers:
        if isinstance(quantizer, WeightQuantizer) and quantizer.training:  # the weight may have changed
            quantizer.cache.clear()
    if state.collecting:
        _renew_searched(model, state)


@torch.compiler.disable
def _end(model: nn.Module, args, output) -> None:
    if not model.training:
        return
    state: QuantizedModelState = getattr(model, ATTRIBUTE)
    state.collecting = False
    # the same ones on all ranks
    quantizers = [q for q in activation_quantizers(model) if q.state is state and q.mode != FLOAT]
    if not quantizers:
        return
    if dist.is_available() and dist.is_initialized():
        _add_over_ranks(quantizers)
    settle_first_ranges(quantizers)


def _renew_searched(model: nn.Module, state: QuantizedModelState) -> None:
    for layer in quantized_layers(model):
        quantizer = layer.weight_quantizer
        if isinstance(quantizer, WeightQuantizer) and quantizer.state is state and quantizer.spec.range == 'search':
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
