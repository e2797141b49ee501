"""Compare the outputs of a student with those of its teacher in every training pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from .losses import soft_labels
from .settings import Distillation

Run = Callable[[nn.Module, tuple, dict], object]
"""Runs a teacher on the arguments of the student's forward pass."""


@dataclass(frozen=True)
class Tap:
    """A module whose outputs are compared.

    Attributes:
        name: of the loss.
        module: qualified name of the module; empty: the network itself.
        loss: of the outputs of one call of the student's module and of the teacher's; a scalar, or several by name.
        weight: factor on it.
    """

    name: str
    module: str
    loss: Callable[[Any, Any], Union[Tensor, dict[str, Tensor]]]
    weight: float = 1.0


class Distiller:
    """Runs a teacher beside its student, and holds the losses of the last training pass.

    In evaluation, and in copies of the student, nothing happens. The teacher is no part of the student: it is
    neither saved nor counted among the parameters.

    Args:
        student: the network that trains.
        teacher: see :func:`make_teacher`; moved to the device of the student.
        settings: see :class:`Distillation`.
        taps: what is compared; None: the output of the network, as class logits in dimension 1.
        run: runs the teacher; None: calls it with the arguments of the student.

    Attributes:
        losses: name -> weighted loss of the last training pass.

    Raises:
        ConfigError: a tap names a module that one of the two does not have.

    >>> import mmgdrq
    >>> from mmgdrq.training.distillation import make_teacher
    >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> teacher = make_teacher(net)
    >>> distiller = Distiller(mmgdrq.quantize(net), teacher)
    >>> y = net.train()(torch.rand(8, 4))
    >>> sorted(distiller.losses)
    ['logits']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        settings: Optional[Distillation] = None,
        taps: Optional[Sequence[Tap]] = None,
        run: Optional[Run] = None,
    ) -> None:
        self.student, self.settings = student, settings or Distillation()
        self.teacher = teacher.to(next(student.parameters()).device)
        kl = partial(soft_labels, temperature=self.settings.temperature)
        self.taps = tuple(taps) if taps is not None else (Tap('logits', '', kl),)
        self.run = run or (lambda network, args, kwargs: network(*args, **kwargs))
        self.losses: dict[str, Tensor] = {}
        self._ours, self._theirs = _Outputs(student, self.taps), _Outputs(self.teacher, self.taps)
        self._handles = [
            *self._ours.handles,
            student.register_forward_pre_hook(self._before_pass()),
            student.register_forward_hook(self._after_pass(), with_kwargs=True),
        ]

    def total(self, task: Tensor) -> Tensor:
        """The loss to train with: that of the task and those of the last pass, weighted.

        Args:
            task: loss of the task, a scalar.
        """
        weight = self.settings.task_weight
        return (1.0 if weight is None else weight) * task + sum(self.losses.values())

    def remove(self) -> None:
        """End the distillation."""
        for handle in self._handles:
            handle.remove()

    # Functions and not methods, as a copy of the student would copy a method's object, and the teacher with it.

    def _before_pass(self) -> Callable:
        def before(module: nn.Module, args: tuple) -> None:
            if module is self.student:
                self.losses = {}
                self._ours.start(module.training and torch.is_grad_enabled())

        return before

    def _after_pass(self) -> Callable:
        def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if module is self.student and self._ours.active:
                self.losses = self._compared(args, kwargs)

        return after

    def _compared(self, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        self._theirs.start(True)
        with torch.no_grad():
            self.run(self.teacher, args, kwargs)
        losses: dict[str, Tensor] = {}
        for tap in self.taps:
            for ours, theirs in zip(self._ours.of[tap.name], self._theirs.of[tap.name]):
                loss = tap.loss(ours, theirs)
                for name, value in loss.items() if isinstance(loss, dict) else [('', loss)]:
                    name = '_'.join(filter(None, (tap.name, name)))
                    losses[name] = losses.get(name, 0.0) + value * (tap.weight * self.settings.weight)
        self._ours.start(False)
        self._theirs.start(False)
        return losses


class _Outputs:
    """The outputs of the watched modules of a network, while it is active."""

    def __init__(self, network: nn.Module, taps: Sequence[Tap]) -> None:
        modules = dict(network.named_modules())
        for tap in taps:
            if tap.module not in modules:
                raise ConfigError(f'distill: {type(network).__name__} has no module {tap.module!r} to compare')
        self.names = [tap.name for tap in taps]
        self.start(False)
        self.handles = [
            modules[tap.module].register_forward_hook(self._keep(modules[tap.module], tap.name)) for tap in taps
        ]

    def start(self, active: bool) -> None:
        self.active = active
        self.of: dict[str, list[Any]] = {name: [] for name in self.names}

    def _keep(self, watched: nn.Module, name: str) -> Callable:
        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            if self.active and module is watched:
                self.of[name].append(output)

        return keep
