"""The state of a quantized model: its plan, its stage, and what it has said already.

The root and all quantizers hold one object. Stage and freezing are buffers of the root, too, which checkpoints,
averaged copies and distributed wrappers carry; the object is read from them where they may have changed.
"""

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any, Optional

import torch
from torch import nn

from ..errors import ConfigError, QuantizationError
from ..layers.quantizers.quantizer import Quantizer
from ..layers.quantizers.state import STAGES, ModelState
from ..layers.walk import all_modules
from ..planning.plan import Plan
from .steps import StepWatch

ATTRIBUTE = 'gdrq_state'
STAGE, FROZEN = 'gdrq_stage', 'gdrq_frozen'
"""Buffers of the root: the index of the stage, and whether ranges stay as they are; floats, as they are averaged."""


class QuantizedModelState(ModelState):
    """What holds for a quantized model as a whole; :func:`mmgdrq.state` gives it.

    Attributes:
        plan: what is quantized to what, and why the rest is not; None for a model with registered layers alone.
        follows_checkpoints: whether a loaded checkpoint decides the stage.
        schedule: when the stages begin, where a config says so.
        led: whether something leads the model through its stages, where it has to be led.
        clipped: whether something is there to clip its weights, or nothing has to.
        log: name of the log that has the plan.
        layers: number of quantizers, and names of the layers that are float.
        process_group: over whose ranks statistics are added up; None: those of the DistributedDataParallel around the
            model, or those of the default group.
        checks_ranges: whether training looks at the inputs of all layers now and then, see :mod:`.range_check`.
        named: layers that such a look has named, with the reason.
        steps: looks for steps of optimizers, where something is attached to them.
    """

    def __init__(self, plan: Optional[Plan] = None, stage: str = 'quantize', follows_checkpoints: bool = False) -> None:
        super().__init__(stage)
        self.managed = True
        self.plan = plan
        self.follows_checkpoints = follows_checkpoints
        self.schedule: Any = None
        self.led = True
        self.clipped = True
        self.log: Optional[str] = None
        self.layers: tuple[int, frozenset[str]] = (0, frozenset())
        self.process_group: Any = None
        self.checks_ranges = True
        self.named: set[tuple[str, str]] = set()
        self.steps: Optional[StepWatch] = None

    def __deepcopy__(self, memo: dict[int, Any]) -> 'QuantizedModelState':
        """A process group cannot be copied; a copy has the same."""
        made = memo[id(self)] = object.__new__(type(self))
        made.__dict__.update(copy.deepcopy({**self.__dict__, 'process_group': None}, memo))
        made.process_group = self.process_group
        return made

    def __getstate__(self) -> dict[str, Any]:
        """A file is for other processes, which have groups of their own."""
        return {**self.__dict__, 'process_group': None}


def is_root(module: nn.Module) -> bool:
    """Whether ``module`` is a model that :func:`mmgdrq.quantize` has quantized."""
    state = getattr(module, ATTRIBUTE, None)
    return state is not None and state.plan is not None


def state_of(model: nn.Module, what: str = 'state') -> QuantizedModelState:
    """The state of a quantized model, such as ``mmgdrq.state(model).plan``.

    Args:
        model: result of :func:`mmgdrq.quantize`.
        what: the function that asks, for the message.

    Raises:
        ConfigError: the model is not quantized, or is a copy that has lost its state.

    >>> import mmgdrq
    >>> model = mmgdrq.quantize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)))
    >>> mmgdrq.state(model).stage
    'quantize'
    """
    if not is_root(model):
        check_whole(model, what)
        raise ConfigError(f'{what}: the model is not quantized. Call mmgdrq.quantize(model, ...) first')
    return getattr(model, ATTRIBUTE)


def check_whole(model: nn.Module, what: str) -> None:
    """Raise where ``model`` has quantizers of a quantized model, and not its state.

    Raises:
        ConfigError: says how a copy loses it.
    """
    held = [id(state) for state in states_in(model)]
    quantizers = (module for module in all_modules(model) if isinstance(module, Quantizer))
    if any(quantizer.state.managed and id(quantizer.state) not in held for quantizer in quantizers):
        raise ConfigError(
            f'{what}: this is a part of a quantized model, or a copy without its state. Give the model itself. A '
            'copied torch.fx.GraphModule has lost its state: quantize a GraphModule after it is copied'
        )


def states_in(model: nn.Module) -> Iterator[QuantizedModelState]:
    """The states of ``model`` and of models inside it."""
    return (module.__dict__[ATTRIBUTE] for module in all_modules(model) if ATTRIBUTE in module.__dict__)


def adopt(model: nn.Module, modules: Iterable[nn.Module]) -> list[Quantizer]:
    """Let the quantizers among ``modules`` hold the state of ``model``, but for those of models inside it.

    A part may have been copied, or added later; it then has a state of its own.
    """
    state = getattr(model, ATTRIBUTE)
    inner = [module.__dict__[ATTRIBUTE] for module in modules if ATTRIBUTE in module.__dict__ and module is not model]
    quantizers = [m for m in modules if isinstance(m, Quantizer) and m.state not in inner]
    for quantizer in quantizers:
        if quantizer.state is not state:
            quantizer.state = state
    return quantizers


def attach_state(model: nn.Module, state: QuantizedModelState) -> None:
    """Let the root and all quantizers of ``model`` hold ``state``, and add the buffers that keep it."""
    setattr(model, ATTRIBUTE, state)
    adopt(model, list(all_modules(model)))
    model.register_buffer(STAGE, torch.tensor(float(STAGES.index(state.stage))))
    model.register_buffer(FROZEN, torch.tensor(float(state.frozen)))
    if _after_load not in model._load_state_dict_post_hooks.values():  # a copied torch.fx.GraphModule has it
        model.register_load_state_dict_post_hook(_after_load)


def _after_load(model: nn.Module, incompatible_keys) -> None:
    missing = incompatible_keys.missing_keys
    missing[:] = [key for key in missing if key.rpartition('.')[2] != FROZEN]  # older checkpoints do not have it
    state = state_of(model)
    state.emptied = state.emptied and any(key.rpartition('.')[2] == STAGE for key in missing)
    if state.follows_checkpoints:
        read_buffers(model)
    else:
        write_stage(model)
        write_frozen(model)


def write_stage(model: nn.Module) -> None:
    """Bring the buffer of the stage up to the state."""
    getattr(model, STAGE).fill_(STAGES.index(state_of(model).stage))


def write_frozen(model: nn.Module) -> None:
    """Bring the buffer of the freezing up to the state; a folded model has none."""
    if hasattr(model, FROZEN):
        getattr(model, FROZEN).fill_(state_of(model).frozen)


def read_buffers(model: nn.Module) -> None:
    """Bring the state up to the buffers of the root, which averages and loads change; asks the device."""
    if not hasattr(model, STAGE):  # registered layers alone
        return
    state = state_of(model)
    if state.emptied:
        state.emptied = False
        write_stage(model)
        write_frozen(model)
    index = float(getattr(model, STAGE))
    if not index.is_integer():
        raise QuantizationError(
            f"the model is an average over the stages '{STAGES[math.floor(index)]}' to '{STAGES[math.ceil(index)]}'. "
            'Call mmgdrq.set_stage for the averaged model, too, when a stage begins, or average no buffers'
        )
    state.stage = STAGES[int(index)]
    if hasattr(model, FROZEN):  # a folded model has none
        state.frozen = float(getattr(model, FROZEN)) > 0.5
