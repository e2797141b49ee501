"""ONNX Runtime's rounding, on sums of products that lie on ties as far as float32 can tell."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmgdrq.deploy.engines.base import Requantization
from mmgdrq.deploy.engines.onnxruntime import refinement, refinement_of, requantized_codes
from tests.helpers.networks import Net, exported_of, trained_fold

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
from tests.helpers.ties import FILTERS, Case, run, write  # noqa: E402


def test_codes_near_ties(tmp_path):
    make, twice = onnx.helper.make_node, 0
    for seed in range(4):
        case, path = Case(seed), tmp_path / f'{seed}.onnx'
        bias = np.rint(case.bias.astype(np.float64) / case.unit.numpy().reshape(-1).astype(np.float64)).astype(np.int32)
        nodes = [
            make('DequantizeLinear', ['integer_bias', 'bias_scale', 'no_shift'], ['b'], axis=0),
            *case.nodes('b'),
            make('QuantizeLinear', ['y', 'step', 'code_zero'], ['codes']),
        ]
        more = dict(integer_bias=bias, bias_scale=case.unit.numpy().reshape(-1), no_shift=np.zeros(FILTERS, np.int32))
        write(path, nodes, dict(case.constants(), **more, code_zero=np.uint8(100)), np.uint8)
        total = case.total().double() + torch.from_numpy(bias).reshape(1, -1, 1, 1)
        found = run('onnxruntime', path, case) - 100
        assert torch.equal(found, requantized_codes(total, case.unit, float(case.step), (-100, 155)))
        y = total.float() * case.unit
        twice += int((found != (y / torch.tensor(case.step)).round().clamp(-100, 155)).sum())
    assert twice > 0, 'these values do not tell one formula from another'


class WithSilu(Net):
    """All inputs are signed."""

    def extract_feat(self, x):
        x = F.silu(self.norm(self.stem(x)))
        x = F.silu(x + self.inner_norm(self.inner(x)))
        x = self.pooled(F.max_pool2d(F.silu(self.wide(x)), 2))
        return self.head(x), self.other(x)


def sums_without_vnni(inputs, weights):
    """What ``vpmaddubsw`` and ``vpmaddwd`` give: pairs of products are added in int16, which saturates."""
    products = inputs.astype(np.int32) * weights.astype(np.int32)
    pairs = products.reshape(*products.shape[:-1], -1, 2).sum(-1)
    return pairs.clip(-(2**15), 2**15 - 1).sum(-1)


@pytest.mark.parametrize('weight_bits', [2, 3, 4])
@pytest.mark.parametrize('input_bits', [4, 8])
@pytest.mark.parametrize('net', [Net, WithSilu])
def test_no_sum_of_low_bit_weights_depends_on_the_processor(tmp_path, net, weight_bits, input_bits):
    torch.manual_seed(0)
    x, quant = torch.randn(2, 3, 16, 16), dict(weight=dict(bits=weight_bits), activation=dict(bits=input_bits))
    folded = trained_fold(net(), x, rules=[dict(pattern='*', **quant)])
    exported = exported_of((folded, x), tmp_path, 'onnxruntime')
    generator = np.random.default_rng(0)
    for module in exported.blocks:
        block = module.block
        codes = (block.weight.flatten(1) * refinement_of(block)).numpy().astype(np.int32)
        codes = np.sort(codes, axis=1)[:, : codes.shape[1] // 2 * 2]  # the largest ones beside each other
        assert np.abs(codes).max() > 40, 'the bias is still rounded finely'
        highest = block.limits[1] + (128 if block.limits[0] < 0 else 0)
        inputs = generator.choice([highest, highest - 1], codes.shape)
        assert (sums_without_vnni(inputs, codes) == (inputs * codes).sum(-1)).all()
        assert not module.engine.depends_on_processor(block, module.output)


def test_the_refinement_of_before_did_depend_on_it():
    inputs, weights = np.full(2, 135), np.full(2, 126)
    assert sums_without_vnni(inputs, weights) < (inputs * weights).sum()
    assert refinement(-3, 135) * 3 == 120
    assert refinement(-3, 15) * 3 == 126


def test_8_bit_weights_that_may_depend_on_it_are_named(tmp_path):
    torch.manual_seed(0)
    model, x = Net(), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        model.wide.weight[0] = 1.0
        model.pooled.weight.uniform_(-1e-3, 1e-3)
        model.pooled.weight[:, 0, 0, 0] = 1.0  # one large weight a filter
    folded = trained_fold(model, x, weight=dict(bits=8, range='minmax'), activation=dict(bits=8))
    exported = exported_of((folded, x), tmp_path, 'onnxruntime')
    engine = exported.engine
    found = {module.block.name: engine.depends_on_processor(module.block, module.output) for module in exported.blocks}
    assert found['wide']
    assert not found['pooled']
    assert not engine.depends_on_processor(exported.blocks[-1].block, Requantization(in_float=True)) or found['other']
