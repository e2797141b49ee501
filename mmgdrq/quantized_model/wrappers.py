"""The wrappers of torch around a quantized model: which ranks share its statistics, and what they leave out."""

from collections.abc import Iterable
from typing import Any, Optional

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import QuantizationError
from ..layers.quantizers.quantizer import Quantizer

CLOSE = 1e-6
"""Relative difference of the sums of the weights of two ranks that hold the same model."""


def refuse_replica(model: nn.Module) -> None:
    """Refuse to train a replica of ``nn.DataParallel``, whose statistics would be lost with it.

    Raises:
        QuantizationError: names the wrapper to use.
    """
    if getattr(model, '_is_replica', False):
        raise QuantizationError(
            'nn.DataParallel: it trains copies of the model that it throws away, and with them what they have seen of '
            'their inputs, so the ranges would be wrong. Train with torch.nn.parallel.DistributedDataParallel'
        )


def distributed_wrapper() -> Optional[DistributedDataParallel]:
    """The ``DistributedDataParallel`` whose forward pass is running."""
    return DistributedDataParallel._get_active_ddp_module()  # torch has no public function for it


def check_reduced(wrapper: DistributedDataParallel, quantizers: Iterable[Quantizer]) -> None:
    """Refuse learned ranges whose gradients a wrapper does not average, as it was there before them.

    Raises:
        QuantizationError: names the first one.
    """
    reduced = {id(parameter) for parameter in wrapper._module_parameters}  # torch has no public name for them
    for quantizer in quantizers:
        learned = quantizer.learned()
        if learned is not None and learned.requires_grad and id(learned) not in reduced:
            raise QuantizationError(
                f'{quantizer.layer_name}: DistributedDataParallel does not average the gradient of its learned range, '
                'as the model was quantized after it was wrapped, so every rank would have a range of its own. '
                'Quantize the model first, then wrap it, then make the optimizer'
            )


def ranks_of(explicit: Any, wrapper: Optional[DistributedDataParallel]) -> Any:
    """The process group whose ranks share the statistics; None: the default one, see :func:`check_one_model`.

    Args:
        explicit: what ``mmgdrq.state(model).process_group`` says, which comes first.
        wrapper: that of the model.
    """
    return explicit if explicit is not None or wrapper is None else wrapper.process_group


@torch.no_grad()
def check_one_model(model: nn.Module) -> None:
    """Refuse to add up the statistics of ranks that hold different models.

    Asked where nothing says which ranks share the model, so that they would be those of the default process group.

    Raises:
        QuantizationError: says how to name the ranks.
    """
    whole = [parameter for parameter in model.parameters() if not hasattr(parameter, 'device_mesh')]
    if not whole:  # every rank holds a part of each parameter
        return
    sums = [torch.stack([p.sum(dtype=torch.float64), p.abs().sum(dtype=torch.float64)]) for p in whole]
    own = torch.stack([pair.to(whole[0].device) for pair in sums]).sum(0)
    ends = torch.stack([own, -own])
    dist.all_reduce(ends, dist.ReduceOp.MAX)  # largest sums, and smallest with another sign
    spread = (ends[0] + ends[1]).abs().amax()
    if float(spread) > CLOSE * float(ends[0, 1]):
        raise QuantizationError(
            'the processes hold different models, so what their layers have seen must not be added up. Where each of '
            'several groups of processes trains a model of its own, wrap it in DistributedDataParallel with '
            'process_group=..., or set mmgdrq.state(model).process_group'
        )
