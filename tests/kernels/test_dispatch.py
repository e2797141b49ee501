"""Compiled kernels against the reference, which is their specification, and the choice between them."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmgdrq.kernels import cpu
from mmgdrq.quant import (
    ActivationSpec,
    WeightSpec,
    collect,
    encode_activation,
    encode_weight,
    encode_weight_by_rule,
    fake_quantize_activation,
    fake_quantize_learned,
    fake_quantize_weight,
    relu,
    scale_clip_,
    weight_range,
    weight_step,
)
from tests.helpers import reference

LIMITS = [(0, 3), (0, 15), (0, 127), (0, 255), (-2, 1), (-8, 7), (-128, 127)]
KERNELS = [
    pytest.param(False, id='torch'),
    pytest.param(True, id='compiled', marks=pytest.mark.skipif(not cpu.built(), reason='kernels are not built')),
]


@pytest.fixture(params=KERNELS)
def kernels(request):
    """Both ways to compute."""
    return request.param


def activation(threshold, limits, dtype=torch.float32):
    """Random values, ties between codes, and the values next to the ends of the range."""
    rng = np.random.default_rng(0)
    levels = limits[1] if limits[0] == 0 else -limits[0]
    ties = (np.arange(limits[0] - 2, limits[1] + 3) + 0.5) * np.float32(threshold / levels)
    near = np.nextafter(np.float32([threshold, threshold, -threshold, -threshold]), np.float32([9, 0, -9, 0]))
    values = np.concatenate([rng.normal(size=9000) * threshold, ties, near, [threshold, -threshold, 0, -0.0, 1e30]])
    return torch.tensor(values, dtype=torch.float32).to(dtype), levels


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize('limits', LIMITS)
def test_activation_codes_are_the_plain_values_and_gradients(kernels, limits, dtype):
    x, levels = activation(1.3, limits, dtype)
    threshold = torch.tensor(1.3)
    plain = x.clone().requires_grad_()
    result = fake_quantize_activation(plain, threshold, levels, limits, kernels)
    upstream = torch.randn(x.shape, dtype=dtype)
    result.backward(upstream)
    statistic = torch.empty(2, dtype=torch.float64)
    encoded = encode_activation(x, threshold, levels, limits, 'input', statistic=statistic, kernels=kernels)
    assert torch.equal(encoded.values.to(dtype), result.detach())
    assert torch.equal(encoded.codes.values('again').to(dtype), result.detach())
    assert torch.equal(encoded.codes.mask_(upstream.clone()), plain.grad)
    assert encoded.codes.stored.dtype == torch.uint8
    assert (encoded.codes.inside is None) is (limits[1] - limits[0] < 128)
    magnitude = x.double().abs()
    assert float(statistic[0]) == pytest.approx(float(magnitude.sum()), rel=1e-5)
    assert int(statistic[1]) == int((magnitude != 0).sum())
    for_evaluation = encode_activation(x, threshold, levels, limits, 'input', keep=False, kernels=kernels)
    assert for_evaluation.codes is None
    assert torch.equal(for_evaluation.values.to(dtype), result.detach())


@pytest.mark.parametrize('threshold', [0.0, 1e-30, 1e-13])
def test_a_range_near_zero_gives_the_same_codes(kernels, threshold):
    x = torch.tensor([0.0, 1e-12, 5.0, -1.0])
    plain = fake_quantize_activation(x, torch.tensor(threshold), 15, (0, 15), kernels)
    encoded = encode_activation(x, torch.tensor(threshold), 15, (0, 15), 'input', kernels=kernels)
    assert torch.equal(encoded.values, plain)


@pytest.mark.parametrize('group_size', [1, 4, -1])
@pytest.mark.parametrize(
    'spec', [dict(bits=2), dict(bits=4), dict(bits=8), dict(bits=3, range='minmax'), dict(bits=2, grid='narrow_range')]
)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'linear', 'gaps'])
def test_weight_codes_are_the_plain_values(kernels, layout, spec, group_size):
    spec = WeightSpec(group_size=group_size, **spec)
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    weight = {
        'contiguous': weight,
        'channels_last': weight.to(memory_format=torch.channels_last),
        'linear': weight.flatten(1),
        'gaps': weight.transpose(1, 2),
    }[layout]
    step = weight_step(weight, weight_range(weight, spec, kernels), spec)
    expected = fake_quantize_weight(weight, step, spec.code_limits, spec.offset, kernels)
    encoded = encode_weight(weight, step, spec.code_limits, 'weight', spec.offset, kernels)
    assert torch.equal(encoded.values, expected)
    assert torch.equal(encoded.codes.values('again'), expected)
    by_rule = encode_weight_by_rule(weight, spec, 'weight', kernels)
    torch.testing.assert_close(by_rule.codes.step.flatten(), step.flatten(), rtol=1e-6, atol=0)
    again = fake_quantize_weight(weight, by_rule.codes.step, spec.code_limits, spec.offset, kernels)
    assert torch.equal(by_rule.codes.values('again'), again)
    assert torch.equal(encode_weight_by_rule(weight, spec, 'weight', kernels).values, again)


@pytest.mark.parametrize('rule', ['mean', 'active_mean', 'lehmer', 'minmax'])
@pytest.mark.parametrize('shape', [(1,), (8191,), (8193,), (3, 4, 50, 50)])
def test_statistics(kernels, rule, shape):
    x = torch.randn(shape).relu() - 0.1 * (torch.rand(shape) > 0.8)
    total, count = collect(x, ActivationSpec(range=rule), signed=False, kernels=kernels).tolist()
    if count:
        assert total / count == pytest.approx(reference.statistic([x.numpy()], rule), rel=1e-5)


@pytest.mark.parametrize('group_size', [1, 2, -1])
def test_scale_clip(kernels, group_size):
    weight = torch.randn(4, 3, 3, 3)
    expected = reference.scale_clip(weight.numpy(), 2.0, group_size)
    version = weight._version
    scale_clip_(weight, WeightSpec(group_size=group_size, k=2.0), kernels)
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6)
    assert weight._version > version, 'autograd notices'


@pytest.mark.parametrize('group_size', [1, 2, -1])
def test_pruned_weights_have_the_range_of_what_is_kept(kernels, group_size):
    weight = torch.randn(5, 30, 17, 17) * (torch.rand(5, 30, 17, 17) > 0.9)  # rows of more than a block
    weight[1] = -0.0
    spec = WeightSpec(bits=4, group_size=group_size, k=2.0)
    alphas = 2 * reference.mean_abs(weight.numpy(), group_size)
    np.testing.assert_allclose(weight_range(weight, spec, kernels).numpy(), alphas, rtol=1e-5)
    steps = [
        reference.step(alpha, 8) for alpha, part in zip(alphas, reference.groups(5, group_size)) for _ in weight[part]
    ]
    encoded = encode_weight_by_rule(weight, spec, 'weight', kernels)
    np.testing.assert_allclose(encoded.codes.step.flatten().numpy(), steps, rtol=1e-5)
    assert bool((encoded.values[weight == 0] == 0).all())
    expected = reference.scale_clip(weight.numpy(), 2.0, group_size)
    np.testing.assert_allclose(scale_clip_(weight, spec, kernels).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('shape', [(1,), (7,), (8,), (8193,), (2, 3, 5, 7)])
def test_relu_equals_torch(kernels, shape, inplace):
    x = torch.randn(shape)
    x.view(-1)[0] = 0
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn(shape)
    upstream.view(-1)[0] = float('inf')
    mine, theirs = relu(one * 1, inplace, kernels), F.relu(two * 1)
    assert torch.equal(mine, theirs)
    mine.backward(upstream)
    theirs.backward(upstream)
    assert torch.equal(one.grad, two.grad)


@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('size', [3, 16, 8200])
def test_relu_of_nan_and_zeros_is_that_of_torch(kernels, size, inplace):
    x = torch.tensor([float('nan'), -0.0, 0.0, 1.0, -float('inf'), float('inf'), 1e-45, -1e-45]).repeat(1025)[:size]
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.arange(1.0, size + 1)
    mine, theirs = relu(one * 1, inplace, kernels), F.relu(two * 1)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    mine.backward(upstream)
    theirs.backward(upstream)
    assert torch.equal(one.grad, two.grad)
    assert float(one.grad[0]) == 1, 'torch lets the gradient of NaN pass'


@pytest.mark.parametrize('shape', [(7,), (2, 3, 5, 7)])
def test_the_gradient_of_relu_has_one_itself(kernels, shape):
    x = torch.randn(shape, requires_grad=True)
    upstream, second = torch.randn(shape, requires_grad=True), torch.randn(shape)
    results = []
    for call in (partial(relu, kernels=kernels), F.relu):
        (slope,) = torch.autograd.grad(call(x), x, upstream, create_graph=True)
        results.append((slope.detach(), *torch.autograd.grad(slope, upstream, second)))
    for mine, theirs in zip(*results):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'gaps'])
@pytest.mark.parametrize(('limits', 'offset'), [((0, 15), 0.0), ((-8, 7), 0.0), ((-2, 1), 0.5)])
@pytest.mark.parametrize('steps', [(), (1, 1, 1, 1), (6, 1, 1, 1), (7,)], ids=str)
def test_learned_gradients_are_those_of_the_torch_path(steps, limits, offset, layout):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 40, 6, 7, generator=generator)
    start.view(-1)[:4] = torch.tensor([0, 1e30, -1e30, 0.25])
    start = {
        'contiguous': start,
        'channels_last': start.to(memory_format=torch.channels_last),
        'gaps': start.transpose(0, 1)[:6, :, :, :],
    }[layout]
    step, upstream = torch.rand(steps, generator=generator) / 4 + 0.05, torch.randn(start.shape, generator=generator)
    upstream = torch.empty_like(start).copy_(upstream)
    results = []
    for by_kernel in (False, True):
        x, s = start.clone().requires_grad_(), step.clone().requires_grad_()
        y = fake_quantize_learned(x, s, limits, offset=offset, kernels=by_kernel)
        y.backward(upstream)
        results.append((y.detach(), x.grad, s.grad))
    plain, kernel = results
    assert torch.equal(plain[0], kernel[0])
    assert torch.equal(plain[1], kernel[1])
    torch.testing.assert_close(plain[2], kernel[2], rtol=1e-4, atol=1e-6 * float(plain[2].abs().max()))


@pytest.mark.skipif(not cpu.built(), reason='kernels are not built')
@pytest.mark.parametrize('count', [1, 31, 32, 1000])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_checksum_depends_on_every_element_and_its_place(count, dtype):
    x = torch.randn(count).to(dtype)
    sums = {cpu.checksum(x)}
    assert cpu.checksum(x.clone()) in sums
    for i in range(0, count, 7):
        changed = x.clone()
        changed[i] += 1
        sums.add(cpu.checksum(changed))
    assert len(sums) == 1 + len(range(0, count, 7))
    if count > 1:
        assert cpu.checksum(x.flip(0)) not in sums
