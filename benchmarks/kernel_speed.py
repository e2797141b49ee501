"""Nanoseconds an element of the compiled kernels on a CPU, next to a copy of the same memory.

    OMP_NUM_THREADS=1 python benchmarks/kernel_speed.py

The best of many runs, for a tensor that fits the cache and for one that does not.
"""

import time
from typing import Callable

import torch
from torch import Tensor

from mmgdrq.kernels import cpu as native

SIZES = (100_000, 6_400_000)
RULE = (torch.tensor(1.3), 15, 1e-12, 0, 15, True, False)


def calls(n: int) -> dict[str, Callable]:
    """Name -> a call of the kernel on ``n`` elements."""
    x, values, grad = torch.randn(n).relu(), torch.empty(n), torch.randn(n)
    stored, bits = torch.empty(n, dtype=torch.uint8), torch.empty(n // 8 + 1, dtype=torch.uint8)
    statistic, step = torch.empty(2, dtype=torch.float64), torch.full((), 0.1)
    return {
        'copy': lambda: values.copy_(x),
        'quantize: codes and statistic': lambda: native.encode(x, values, stored, None, statistic, step, *RULE),
        'quantize: codes': lambda: native.encode(x, values, stored, None, None, step, *RULE),
        'quantize: evaluation': lambda: native.encode(x, values, None, None, None, None, *RULE),
        'dequantize': lambda: native.decode(stored, step, values, 0, 127),
        'mask of the gradient': lambda: native.mask(grad, stored, 7),
        'gradients of a learned range': lambda: native.learned_gradients(x, grad, step, 0, 15, 0.0),
        'lean ReLU': lambda: native.relu(x, values, bits),
        'lean ReLU, backward': lambda: native.relu_backward(grad, bits, values),
        'checksum': lambda: native.checksum(x),
    }


def nanoseconds(call: Callable[[], Tensor], n: int, runs: int = 30) -> float:
    """Of the fastest of ``runs`` calls, for one of ``n`` elements."""
    best = float('inf')
    for _ in range(runs):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best / n * 1e9


def main() -> None:
    if not native.built():
        raise SystemExit('the kernels are not built: see README.md')
    rows = [{name: nanoseconds(call, n) for name, call in calls(n).items()} for n in SIZES]
    print(f'| {torch.get_num_threads()} threads | ' + ' | '.join(f'{n:,} elements, ns each' for n in SIZES) + ' |')
    print('|---' * (len(SIZES) + 1) + '|')
    for name in rows[0]:
        print(f'| {name} | ' + ' | '.join(f'{row[name]:.2f}' for row in rows) + ' |')


if __name__ == '__main__':
    main()
