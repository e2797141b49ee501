"""The forward passes of a model, and the ranges that their backward passes need."""

from collections import deque
from collections.abc import Iterable
from typing import Any, Optional

import torch
from torch import Tensor

KEPT = 32
"""Passes without a graph that a recomputation of the whole model may belong to."""


class Pass:
    """One forward pass in training mode: the ranges that have moved since, as they were in it.

    Attributes:
        ranges: ``id`` of a quantizer -> its range.
        following: the next pass; a range that is not here is the one there, or the present one after the last.
    """

    def __init__(self) -> None:
        self.ranges: dict[int, Any] = {}
        self.following: Optional[Pass] = None

    def range_of(self, quantizer: object) -> Any:
        """The range in this pass; None: it has not moved since."""
        found: Optional[Pass] = self
        while found is not None:
            if id(quantizer) in found.ranges:
                return found.ranges[id(quantizer)]
            found = found.following
        return None


class Passes:
    """The forward passes of a root module since it was made, copied or unpickled.

    Activation checkpointing computes parts of a pass, or all of it, once more in the backward pass. Several passes may
    have come by then, and ranges have moved; :meth:`kept` gives them as they were.

    Attributes:
        running: how many are running, one inside another.
        trained: how many were in training mode.
        training: whether the last one that began was.
        collecting: whether one is running that adds to the statistics.
        one_model: whether all ranks were found to hold the same model.
        look: at the inputs of all layers, while one goes on.
    """

    def __init__(self) -> None:
        self.running = self.trained = 0
        self.training = self.collecting = self.one_model = False
        self.look: Any = None
        self._last: Optional[Pass] = None
        self._recomputed: Optional[Pass] = None
        self._without_graph: deque[tuple[tuple, Pass]] = deque(maxlen=KEPT)

    def __reduce__(self):
        return Passes, ()  # a copy has made none

    def begin(self, training: bool, collecting: bool, inputs: Iterable[Tensor]) -> None:
        """Note that a forward pass begins, now that its ranges have moved on."""
        self.running += 1
        self.training, self.collecting = training, collecting
        self._recomputed = None
        if not training:
            return
        self.trained += 1
        before, self._last = self._last, Pass()
        if before is not None:
            before.following = self._last
        if not torch.is_grad_enabled():  # as in checkpointing of the whole model with use_reentrant=True
            self._without_graph.append((_identity(inputs), self._last))

    def end(self, outputs: Iterable[Tensor]) -> None:
        """Note that it ends; the backward pass from its outputs finds the ranges of it."""
        self.running -= 1
        self.collecting = False
        ended = self._last
        for output in outputs:
            if output.grad_fn is not None:
                output.grad_fn.register_prehook(lambda *_: self._recompute(ended))

    def begin_again(self, inputs: Iterable[Tensor]) -> None:
        """Note that the backward pass computes the whole model once more."""
        self.running += 1
        key = _identity(inputs)
        for found in reversed(self._without_graph):
            if found[0] == key:
                self._without_graph.remove(found)
                self._recompute(found[1])
                break

    def end_again(self) -> None:
        """Note that this is over."""
        self.running -= 1

    def _recompute(self, forward: Optional[Pass]) -> None:
        moved = forward is not None and (forward.ranges or forward.following is not None)
        self._recomputed = forward if moved else None

    def keep(self, quantizer: object, value: Any) -> None:
        """Keep the range of a quantizer before it moves, for the backward pass of the last forward pass."""
        if self._last is not None:
            self._last.ranges.setdefault(id(quantizer), value)

    def kept(self, quantizer: object) -> Any:
        """Its range in the forward pass that is computed once more; None: the present one."""
        if self._recomputed is None or not in_backward():
            return None
        return self._recomputed.range_of(quantizer)


def in_backward() -> bool:
    """Whether a backward pass is running in this thread."""
    return torch._C._current_graph_task_id() != -1  # torch has no public function for it


def _identity(tensors: Iterable[Tensor]) -> tuple:
    """Where tensors lie: checkpointing gives the same ones to the recomputation, detached."""
    return tuple((tensor.data_ptr(), tensor.shape) for tensor in tensors)
