"""Triton kernels against the reference, in Triton's interpreter."""

import os
import subprocess
import sys

import pytest

INTERPRETED = """
import torch
from mmgdrq.kernels import cuda, reference
from mmgdrq.quant import WeightSpec, encode_activation, encode_weight, encode_weight_by_rule
devices = []

class OnDeviceOf:
    def __init__(self, tensor):
        self.tensor = tensor

    def __enter__(self):
        devices.append(self.tensor)

    def __exit__(self, *_):
        devices.pop()

class Launched:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(x, *args, **constants):
            assert devices[-1] is x
            launches.add(self)
            return self.kernel[grid](x, *args, **constants)
        return launch

launches = set()
torch.cuda.device_of = OnDeviceOf
for name in ('_encode', '_encode_rows', '_decode', '_mask'):
    setattr(cuda, name, Launched(getattr(cuda, name)))

def both(call):
    results = []
    for operators in (reference, cuda):
        codes.operators = lambda kernels: operators
        results.append(call())
    return results

import mmgdrq.quant.codes as codes
torch.manual_seed(0)

def check(plain, fused, label):
    for name, a, b in zip(label.split(), plain, fused):
        assert torch.allclose(a.float(), b.float(), rtol=1e-6, atol=0), (label, name, a, b)

for dtype in (torch.float32, torch.float16):  # the interpreter truncates to bfloat16, a GPU rounds
    for limits in ((0, 15), (0, 255), (-8, 7), (-128, 127)):
        levels = limits[1] if limits[0] == 0 else -limits[0]
        ties = (torch.arange(limits[0] - 2, limits[1] + 3) + 0.5) * (torch.tensor(1.3) / levels)
        x = torch.cat([torch.randn(5000) * 1.3, ties, torch.tensor([1.3, -1.3, 0.0, 1e30])]).to(dtype)
        upstream = torch.randn_like(x)

        def activation():
            statistic = torch.empty(2, dtype=torch.float64)
            e = encode_activation(x, torch.tensor(1.3), levels, limits, 'input', statistic=statistic)
            values = e.values.to(dtype).clone()
            return values, e.codes.stored, e.codes.step, e.codes.values('input').to(dtype).clone(), \
                e.codes.mask_(upstream.clone()), statistic

        plain, fused = both(activation)
        check(plain[:5], fused[:5], 'values stored step decoded masked')
        check(plain[5:], fused[5:], 'statistic')
        assert torch.equal(plain[1], fused[1])

        def powers():
            statistic = torch.empty(2, dtype=torch.float64)
            near = torch.where(x.float().abs() < 1e4, x.float(), 1e4)
            encode_activation(near, torch.tensor(1.3), levels, limits, 'input', statistic=statistic, powers=True)
            return (statistic,)

        check(*both(powers), 'powers')

for group_size in (1, 2, -1):
    for bits in (2, 4, 8):
        spec = WeightSpec(bits=bits, group_size=group_size)
        weight = torch.randn(5, 7, 3, 3)
        step = torch.rand(5, 1, 1, 1) + 0.1

        def by_step():
            e = encode_weight(weight, step, spec.code_limits, 'weight')
            return e.values.clone(), e.codes.values('weight').clone()

        check(*both(by_step), 'values again')

        def by_one_step():
            e = encode_weight(weight, torch.tensor(0.3), spec.code_limits, 'weight')
            return e.values.clone(), e.codes.values('weight').clone()

        check(*both(by_one_step), 'values again')

        def by_rule():
            e = encode_weight_by_rule(weight, spec, 'weight')
            return e.codes.step, e.values.clone()

        check(*both(by_rule), 'step values')
        weight = weight * (torch.rand_like(weight) > 0.9)
        weight[1] = 0
        check(*both(by_rule), 'step values')
assert len(launches) == 4 and not devices
print('equal')
"""


def test_triton_kernels_in_the_interpreter():
    pytest.importorskip('triton', reason='Triton comes with torch for CUDA')
    environment = dict(os.environ, TRITON_INTERPRET='1')
    done = subprocess.run([sys.executable, '-c', INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.stdout == 'equal\n', done.stderr
