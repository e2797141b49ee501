"""From which share of negative elements on a look at the ranges reports an input, and what it counts."""

import pytest
import torch
from torch import nn

import mmgdrq
from mmgdrq.quantized_model.range_check import RangeCheck

SIZE = 1000


def net() -> nn.Module:
    """Its first iteration was positive, so its inputs have an unsigned grid."""
    model = mmgdrq.quantize(nn.Sequential(nn.Linear(SIZE, 2))).train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.ones(1, SIZE))
    assert not bool(model[0].activation_quantizer.signed)
    return model


def with_negative(count: int) -> torch.Tensor:
    x = torch.ones(1, SIZE)
    x[0, :count] = -1
    return x


def findings(model: nn.Module, *inputs: torch.Tensor) -> list[str]:
    look = RangeCheck(model, set())
    with torch.no_grad():
        for x in inputs:
            model(x)
    return list(look.findings(model))


@pytest.mark.parametrize(('count', 'reported'), [(0, False), (1, False), (10, False), (11, True), (500, True)])
def test_more_than_one_percent_must_be_negative(count, reported):
    found = findings(net(), with_negative(count))
    assert len(found) == reported
    assert all(f"the input of '0' is negative in {count / SIZE:.0%} of its elements" in text for text in found)


def test_all_calls_of_an_iteration_count():
    model = net()
    assert findings(model, with_negative(0), with_negative(20)) == []
    (found,) = findings(model, with_negative(0), with_negative(40))
    assert 'negative in 2%' in found


def test_one_element_that_is_not_finite_is_enough():
    x = torch.ones(1, SIZE)
    x[0, 3] = torch.inf
    (found,) = findings(net(), x)
    assert 'holds NaN or Inf' in found


def test_a_signed_grid_takes_negative_inputs():
    model = mmgdrq.quantize(nn.Sequential(nn.Linear(SIZE, 2)), activation=dict(signed=True)).train()
    with torch.no_grad():
        model(torch.ones(1, SIZE))
    assert findings(model, with_negative(500)) == []
