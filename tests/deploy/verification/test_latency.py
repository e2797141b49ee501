"""Kernels and times of the engines."""

import pytest

from mmgdrq.deploy.verification.latency import interleave, speedup


def test_interleaved_times():
    order = []
    times = interleave({'a': lambda: order.append('a'), 'b': lambda: order.append('b')}, rounds=3, warmup=1)
    assert order == ['a', 'b'] * 4
    assert {name: len(values) for name, values in times.items()} == {'a': 3, 'b': 3}
    assert speedup({'a': [1.0, 2.0, 9.0], 'b': [2.0, 6.0, 18.0]}, 'a', 'b') == 2.0
    with pytest.raises(ValueError, match='rounds=0'):
        interleave({'a': order.clear}, rounds=0)
