"""What happens once a training iteration, for all quantizers of a model together.

An iteration is one forward pass of the root module in training mode. Before it, the statistics of the
last iteration become one step of every running threshold; during it, each quantizer adds up what it sees,
however often a shared layer is called; after it, the sums of all ranks are added up in one collective.
What activation checkpointing computes again in the backward pass counts nothing, and uses the ranges of its forward
pass.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers.quantizers.activation_quantizer import ActivationQuantizer, settle_first_ranges, step_thresholds
from ..layers.quantizers.passes import in_backward
from ..layers.quantizers.quantizer import Quantizer, keep_positive, read_flags
from ..layers.quantizers.state import FLOAT
from ..layers.quantizers.weight_quantizer import WeightQuantizer
from ..layers.walk import activation_quantizers, all_modules, quantized_layers
from ..quant.ranges.rule import MAX, SUM
from .loading import check_saves_ranges
from .range_check import FIRST_LOOK, INTERVAL, RangeCheck
from .replaced_layers import refuse_new_float_layers, remember_layers
from .state import ATTRIBUTE, QuantizedModelState, adopt, read_buffers
from .wrappers import check_one_model, check_reduced, distributed_wrapper, ranks_of, refuse_replica


def manage(model: nn.Module) -> None:
    """Let the forward pass of ``model`` define the iteration of the quantizers that hold its state."""
    for name, module in model.named_modules():
        if isinstance(module, Quantizer) and not module.layer_name:
            module.layer_name = name.rpartition('.')[0]
    remember_layers(model)
    model.register_forward_pre_hook(_begin, with_kwargs=True)
    model.register_forward_hook(_end)


def manage_registered(model: nn.Module) -> None:
    """:func:`manage` for a model that was built with quantized layers, unless it is managed already."""
    if not all(module.state.managed for module in all_modules(model) if isinstance(module, Quantizer)):
        setattr(model, ATTRIBUTE, QuantizedModelState())
        adopt(model, list(all_modules(model)))
        manage(model)


@torch.compiler.disable
def _begin(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    state: QuantizedModelState = getattr(model, ATTRIBUTE)
    inputs = tensors_in((args, kwargs))
    if model.training and in_backward():  # activation checkpointing of the whole model
        state.passes.begin_again(inputs)
        return
    modules = list(all_modules(model))
    quantizers = adopt(model, modules)
    if model.training:
        _check_training(model, state, quantizers)
    if not (model.training and state.passes.training) and not tracing():  # in training once, after an evaluation
        read_buffers(model)
        read_flags(quantizers)
    collecting = model.training and not state.frozen
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
    if collecting:
        _renew_searched(model, state)
    state.passes.begin(model.training, collecting, inputs)
    if model.training:
        _look(model, state)


@torch.compiler.disable
def _end(model: nn.Module, args, output) -> None:
    state: QuantizedModelState = getattr(model, ATTRIBUTE)
    if model.training and in_backward():
        state.passes.end_again()
        return
    state.passes.end(tensors_in(output) if model.training else ())
    if not model.training:
        return
    # the same ones on all ranks
    quantizers = [q for q in activation_quantizers(model) if q.state is state and q.mode != FLOAT]
    if quantizers and dist.is_available() and dist.is_initialized():
        group = _ranks(model, state)
        _add_over_ranks(quantizers, group)
    settle_first_ranges(quantizers)
    if state.passes.look is not None:
        for finding in state.passes.look.findings(model):
            warnings.warn(finding, stacklevel=2)
        state.passes.look = None


def _check_training(model: nn.Module, state: QuantizedModelState, quantizers: list[Quantizer]) -> None:
    """Refuse to train what could not be trained rightly; say what is missing."""
    refuse_replica(model)
    if state.passes.trained == 0:
        check_saves_ranges(model)
        wrapper = distributed_wrapper()
        if wrapper is not None:
            check_reduced(wrapper, quantizers)
    if state.steps is not None and state.steps.missed(model):
        warnings.warn(
            'mmgdrq: the weights change, but no step of an optimizer that Scale-Clip is attached to was seen, so it '
            "never clips. An optimizer with steps of other names, such as SAM's first_step and second_step, has one "
            'of torch inside: mmgdrq.ScaleClip(model).attach(optimizer.base_optimizer)',
            stacklevel=2,
        )


def _look(model: nn.Module, state: QuantizedModelState) -> None:
    """Look at the inputs of all layers now and then."""
    if state.passes.look is not None:  # an error has ended its iteration
        state.passes.look.end()
        state.passes.look = None
    number = state.passes.trained
    if state.checks_ranges and (number == FIRST_LOOK + 1 or number % INTERVAL == 0):
        state.passes.look = RangeCheck(model, state.named)


def _ranks(model: nn.Module, state: QuantizedModelState) -> Any:
    """The process group of the model; None: the default one."""
    group = ranks_of(state.process_group, distributed_wrapper())
    if group is None and not state.passes.one_model:
        check_one_model(model)
        state.passes.one_model = True
    return group


def tracing() -> bool:
    """Whether the values of tensors are not there to be read."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts, such as the arguments or the losses of a model."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        return []
    return [tensor for value in values for tensor in tensors_in(value)]


def _renew_searched(model: nn.Module, state: QuantizedModelState) -> None:
    for layer in quantized_layers(model):
        quantizer = layer.weight_quantizer
        if isinstance(quantizer, WeightQuantizer) and quantizer.state is state and quantizer.rule.improves:
            quantizer.renew(layer.filters())


def _add_over_ranks(quantizers: list[ActivationQuantizer], group: Any) -> None:
    seen = [q for q in quantizers if not q.rule.learned or q.is_fresh()]  # an optimizer moves the others
    for reduction, operation in ((SUM, dist.ReduceOp.SUM), (MAX, dist.ReduceOp.MAX)):
        chosen = [q for q in seen if q.rule.reduction == reduction]
        if not chosen:
            continue
        pending = torch.cat([q.pending for q in chosen])
        dist.all_reduce(pending, operation, group)
        for quantizer, result in zip(chosen, pending.split([len(q.pending) for q in chosen])):
            quantizer.pending.copy_(result)
            quantizer.observed = True
