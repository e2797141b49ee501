"""Set the ranges of a quantized model from a few batches, without labels and without training."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, Callable, Optional, Union

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..layers import WeightQuantizer
from ..layers.base import ActivationConfig, WeightConfig
from ..layers.walk import is_quantized_model, quantized_layers
from ..planning.plan import Plan
from ..planning.policy import make_plan
from ..planning.rules import Rule, make_rules
from ..quantized_model.conversion import check_convertible, convert
from ..quantized_model.stages import set_stage
from ..quantized_model.state import is_root, state_of
from ..quantized_model.undo import undone_on_error
from .bias_correction import correct_bias
from .defaults import activation_defaults, weight_defaults
from .input_ranges import collecting
from .layer_errors import layer_errors
from .reconstruction import collecting_moments
from .report import CalibrationReport

Run = Callable[[nn.Module, Any], Any]
Progress = Union[bool, Callable[[Iterable], Iterable]]


def calibrate(
    model: nn.Module,
    batches: Iterable,
    run: Optional[Run] = None,
    progress: Progress = True,
    *,
    weight: WeightConfig = None,
    activation: ActivationConfig = None,
    rules: Sequence[Union[Rule, Mapping[str, Any]]] = (),
    plan: Optional[Plan] = None,
    reconstruct: bool = False,
    bias_correction: bool = False,
) -> CalibrationReport:
    """Set all ranges of ``model`` from ``batches``, in place; no labels, no gradients, BN as it is evaluated.

    The inputs of all layers are looked at while the model computes in float, so that the result does not depend on the
    order of the batches. All elements of all batches count the same; no batch is kept but the first. Afterwards the
    model is in evaluation mode and in stage ``'quantize'``: it can be evaluated, trained, saved and folded.

    Args:
        model: a quantized model, or a float model, which is quantized first.
        batches: what ``run`` takes; every one is used, once.
        run: runs the model on one batch. By default a tensor is the model's input, a tuple holds its arguments, and
            the dict of an OpenMMLab data loader goes to ``test_step``.
        progress: show a bar, with tqdm where it is installed; or a function that wraps ``batches``.
        weight: dict of :class:`~mmgdrq.quant.WeightSpec`, for a float model; see
            :func:`~mmgdrq.post_training.defaults.weight_defaults`.
        activation: dict of :class:`~mmgdrq.quant.ActivationSpec`, for a float model; see
            :func:`~mmgdrq.post_training.defaults.activation_defaults`. ``dict(grid='affine')`` suits networks with
            SiLU, GELU and the like, and depthwise convolutions.
        rules: see :func:`mmgdrq.plan`, for a float model.
        plan: what :func:`mmgdrq.plan` gave, for a float model, in place of weight, activation and rules.
        reconstruct: round the weights of fewer than 8 bits with searched ranges so that the output of their layer
            changes least, see :mod:`mmgdrq.post_training.reconstruction`; the weights become what they round to.
        bias_correction: take the mean error over the first batch out of every channel, by BN or bias.

    Returns:
        The plan, and what was found for each layer; ``print(report)``.

    Raises:
        ConfigError: there is no batch, the model is quantized already and is to be quantized again, or a batch is of a
            kind that needs ``run``.
        QuantizationError: an input that is not finite; the message names the layer.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    >>> report = calibrate(model, [torch.rand(4, 3, 8, 8), torch.rand(2, 3, 8, 8)], progress=False)
    >>> [layer.activation_bits for layer in report.layers], report.batches
    ([8, 8], 2)
    """
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ConfigError('calibrate: there is no batch. Give at least one; an iterator can be used once only')
    _quantize(model, weight, activation, rules, plan)
    run = run or run_batch
    model.eval()
    with torch.no_grad():
        _set_weight_ranges(model)
        count = _look_at(model, run, _shown(itertools.chain([first], batches), progress), reconstruct)
        if bias_correction:
            correct_bias(model, lambda: run(model, first))
        layers = layer_errors(model, lambda: run(model, first))
    made = state_of(model).plan
    assert made is not None
    return CalibrationReport(made, layers, count)


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Run ``model`` on a batch: a tensor, a tuple of arguments, or the dict of an OpenMMLab data loader.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, tuple):
        return model(*batch)
    if isinstance(batch, Mapping) and hasattr(model, 'test_step'):
        return model.test_step(batch)
    raise ConfigError(
        f'calibrate: a batch is a {type(batch).__name__}, and nothing says how the model runs on it. Give run=, such '
        'as run=lambda model, batch: model(batch[0]) where a data loader yields images and labels'
    )


def _quantize(model: nn.Module, weight, activation, rules, plan: Optional[Plan]) -> None:
    asked = weight is not None or activation is not None or bool(rules)
    if is_root(model):
        if asked or plan is not None:
            raise ConfigError(
                'calibrate: the model is quantized already, so weight, activation, rules and plan come too late. Give '
                'them to mmgdrq.quantize, or calibrate the float model'
            )
        return
    if plan is not None and asked:
        raise ConfigError('plan: it says all about weight, activation and rules. Give it, or them')
    if is_quantized_model(model) and not asked and plan is None:
        raise ConfigError(
            'calibrate: the model has quantized layers, but is no quantized model. Call mmgdrq.quantize(model, ...) '
            'first'
        )
    check_convertible(model)
    if plan is None:
        plan = make_plan(model, weight_defaults(weight), activation_defaults(activation), make_rules(rules))
    with undone_on_error(model):
        convert(model, plan)


def _look_at(model: nn.Module, run: Run, batches: Iterable, reconstruct: bool) -> int:
    """Set the ranges of the inputs, and reconstruct the weights; the number of batches."""
    count = 0
    set_stage(model, 'float')
    try:
        looking: Any = collecting_moments(model) if reconstruct else nullcontext([])
        with collecting(model) as statistics, looking as moments:
            for batch in batches:
                run(model, batch)
                count += 1
    finally:
        set_stage(model, 'quantize')
    for statistic in statistics:
        statistic.set_range()
    for moment in moments:
        moment.reconstruct()
    return count


def _set_weight_ranges(model: nn.Module) -> None:
    for layer in quantized_layers(model):
        quantizer = layer.weight_quantizer
        if isinstance(quantizer, WeightQuantizer) and quantizer.stateful:
            quantizer.forget()
            quantizer.renew(layer.filters().detach())


def _shown(batches: Iterable, progress: Progress) -> Iterable:
    if callable(progress):
        return progress(batches)
    if not progress or find_spec('tqdm') is None:
        return batches
    from tqdm import tqdm

    return tqdm(batches, desc='calibrate', unit='batch')
