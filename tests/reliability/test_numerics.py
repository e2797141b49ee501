"""Extreme numbers and shapes: right, or one error that names the layer; never a NaN that travels."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mmgdrq
from mmgdrq.errors import FoldError, QuantizationError
from mmgdrq.layers import ActivationQuantizer, WeightQuantizer
from tests.helpers.toy import log_of, toy_runner

RULES = ['mean', 'search', 'learned', 'minmax']


class Net(nn.Module):
    """A convolution with BN, a depthwise one whose filters no group size divides, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3, padding=1)
        self.norm = nn.BatchNorm2d(7)
        self.depthwise = nn.Conv2d(7, 7, 3, padding=1, groups=7)
        self.linear = nn.Linear(7, 2)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        return self.linear(self.depthwise(x).mean((2, 3)))


def net_of(rule='mean', group_size=3, **activation):
    torch.manual_seed(0)
    given = dict(range=rule, **activation)
    quant = dict(weight=dict(bits=2, group_size=group_size, range=rule), activation=given)
    return mmgdrq.quantize(Net(), **quant).train()


def step(net, x, lr=0.01):
    """One training step; the output."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    mmgdrq.ScaleClip(net).attach(optimizer)
    y = net(x)
    y.float().square().mean().backward()
    optimizer.step()
    return y


def assert_finite(net, *tensors):
    for name, tensor in [*net.state_dict().items(), *enumerate(tensors)]:
        assert bool(torch.isfinite(tensor).all()), name
    for name, p in net.named_parameters():
        assert p.grad is None or bool(torch.isfinite(p.grad).all()), f'gradient of {name}'


# ------------------------------------------------------------------ tensors

EXTREME = {
    'constant': lambda x: torch.full_like(x, 0.7),
    'negative constant': lambda x: torch.full_like(x, -3.0),
    'denormal': lambda x: x * 1e-39,
    'tiny': lambda x: x * 1e-30,
    'huge': lambda x: x * 1e15,
    'one element': lambda x: F.one_hot(torch.tensor(5), x.numel()).reshape(x.shape).float(),
    'zero': torch.zeros_like,
}


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('kind', EXTREME)
def test_extreme_inputs_train_and_evaluate(rule, kind):
    net = net_of(rule)
    step(net, torch.randn(2, 3, 5, 5))
    x = EXTREME[kind](torch.randn(2, 3, 5, 5))
    for _ in range(3):
        assert_finite(net, step(net, x, lr=1e-12))
    assert_finite(net, net.eval()(x))


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('kind', sorted(set(EXTREME) - {'zero'}))
def test_extreme_first_inputs(rule, kind):
    net = net_of(rule)
    x = EXTREME[kind](torch.randn(2, 3, 5, 5))
    for _ in range(2):
        assert_finite(net, step(net, x, lr=1e-12))
    assert_finite(net, net.eval()(x))


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('filters', [slice(0, 1), slice(0, 3), slice(None)], ids=['filter', 'group', 'layer'])
def test_all_zero_filters_give_zero(rule, filters):
    net = net_of(rule)
    with torch.no_grad():
        net.conv.weight[filters] = 0
    x = torch.randn(2, 3, 5, 5)
    y = net(x)
    assert_finite(net, y)
    weight = net.conv.weight_quantizer(net.conv.weight)
    assert not weight[filters].any()
    y.sum().backward()
    assert_finite(net)
    assert_finite(mmgdrq.fold(net.eval()))


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('shape', [(1, 3, 5, 5), (2, 3, 1, 1)], ids=['batch of 1', '1x1'])
@pytest.mark.parametrize('group_size', [1, 2, 5, 100, -1])
def test_small_shapes_and_indivisible_groups(rule, shape, group_size):
    net = net_of(rule, group_size)
    for _ in range(2):
        assert_finite(net, step(net, torch.randn(shape)))
    net.eval()
    x = torch.randn(shape)
    torch.testing.assert_close(mmgdrq.fold(net)(x), net(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('rule', RULES)
def test_an_empty_batch_trains_without_effect(rule):
    """No RoIs, or images without objects; only a searched weight range follows the weight, as always."""
    net = mmgdrq.quantize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), dict(range=rule), dict(range=rule)).train()
    step(net, torch.randn(3, 4))
    before = copy.deepcopy(net.state_dict())
    net.zero_grad()
    net(torch.zeros(0, 4)).sum().backward()
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]) or 'weight_quantizer' in key, key
    assert all(p.grad is None or not p.grad.any() for p in net[0].parameters())


def test_a_detector_sees_images_without_objects(tmp_path):
    """Also in its first iteration; then one with objects, and an RoI head without RoIs."""
    pytest.importorskip('mmdet', reason='mmdet is not installed')
    from tests.openmmlab.test_builder import MMDET_MODELS, batch, detector_config, register_all_modules

    register_all_modules()
    torch.manual_seed(0)
    model = MMDET_MODELS.build(detector_config(tmp_path).model).train()
    for empty in (True, True, False):
        data = batch()
        for sample in data['data_samples']:
            sample.gt_instances = sample.gt_instances[:0] if empty else sample.gt_instances
        model.zero_grad()
        loss, _ = model.parse_losses(model(**model.data_preprocessor(data, training=True), mode='loss'))
        loss.backward()
        assert_finite(model, loss)
    scores, boxes = model.eval().roi_head.bbox_head(torch.zeros(0, 16, 7, 7))
    assert (len(scores), len(boxes)) == (0, 0)


# ------------------------------------------------------------------ autocast and loss scaling


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(rule, dtype):
    """Ranges are float32, and near those of float32 training."""
    torch.manual_seed(1)
    batches = [torch.randn(4, 3, 6, 6) for _ in range(4)]
    nets = [net_of(rule), net_of(rule)]
    for net, enabled in zip(nets, (False, True)):
        for x in batches:
            with torch.autocast('cpu', dtype, enabled=enabled):
                y = net(x)
            y.float().square().mean().backward()
            assert_finite(net, y)
    for (name, one), other in zip(nets[0].named_modules(), nets[1].modules()):
        if isinstance(one, (ActivationQuantizer, WeightQuantizer)):
            for key, value in one.state_dict().items():
                assert other.state_dict()[key].dtype == value.dtype
                torch.testing.assert_close(
                    other.state_dict()[key], value, rtol=0.15, atol=1e-3, msg=lambda m, n=name: n + m
                )


def test_half_precision_overflow_does_not_reach_the_ranges():
    net = net_of()
    step(net, torch.randn(2, 3, 5, 5))
    before = {k: v.clone() for k, v in net.state_dict().items() if k.endswith('threshold')}
    with torch.autocast('cpu', torch.float16):
        net(torch.full((2, 3, 5, 5), 1e5))  # inf in float16
        net(torch.full((2, 3, 5, 5), float('nan')))
    net(torch.zeros(0, 3, 5, 5))
    assert all(value > 0 for value in before.values())
    assert all(bool(torch.isfinite(net.state_dict()[key])) for key in before)


def test_a_step_that_overflows_changes_nothing():
    """GradScaler skips it: no weight, no range and no projection moves, and the scale falls."""
    net = net_of('learned')
    x = torch.randn(2, 3, 5, 5)
    net(x)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    calls = []
    projection = mmgdrq.ScaleClip(net)
    projection.attach(optimizer)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**8)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for factor, stepped in ((float('inf'), 0), (1.0, 1)):
        optimizer.zero_grad()
        scaler.scale(net(x).square().mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert len(calls) == stepped
        same = all(torch.equal(p, before[name]) for name, p in net.named_parameters())
        assert same == (not stepped)
    assert scaler.get_scale() == 2.0**7
    assert_finite(net)


# ------------------------------------------------------------------ NaN and Inf


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('rule', RULES)
def test_bad_numbers_in_a_later_input_do_not_stay(rule, bad):
    net = net_of(rule)
    step(net, torch.randn(2, 3, 5, 5))
    x = torch.randn(2, 3, 5, 5)
    y = x.clone()
    y[0, 0, 0, 0] = bad
    net(y)
    net.norm.reset_running_stats()  # BN keeps NaN, with or without quantization
    net(x)
    net.eval()
    for name, value in net.state_dict().items():
        assert bool(torch.isfinite(value).all()), name
    assert bool(torch.isfinite(net(x)).all())


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_bad_weights_are_not_folded(bad):
    net = net_of()
    step(net, torch.randn(2, 3, 5, 5))
    with torch.no_grad():
        net.depthwise.weight[0, 0, 0, 0] = bad
    with pytest.raises(FoldError, match=r'depthwise\.weight is not finite'):
        mmgdrq.fold(net.eval())


def test_a_first_input_that_is_bad_after_a_layer_names_that_layer():
    net = net_of()
    net.norm.bias.data[0] = math.nan
    with pytest.raises(QuantizationError, match='depthwise: its first input is not finite'):
        net(torch.randn(2, 3, 5, 5))


# ------------------------------------------------------------------ learned ranges


@pytest.mark.parametrize('value', [0.0, -0.3, -1e-30, 1e-30])
def test_a_learned_range_below_zero_goes_on(value):
    """An optimizer step may take a range below zero; it must not stay where it has no gradient."""
    net = net_of('learned')
    x = torch.randn(8, 3, 5, 5)
    step(net, x)
    quantizers = net.conv.weight_quantizer, net.conv.activation_quantizer
    ranges = quantizers[0].alpha, quantizers[1].threshold
    with torch.no_grad():
        for tensor in ranges:
            tensor.fill_(value)
    weight, target = net.conv.weight, net.conv.weight.detach().clone()
    optimizer = torch.optim.Adam(ranges, lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (quantizers[0](weight) - target).square().sum() + (quantizers[1](x) - x).square().mean()
        loss.backward()
        assert all(bool(torch.isfinite(tensor.grad).all()) and tensor.grad.any() for tensor in ranges)
        optimizer.step()
    state = net.state_dict()
    for key in ('conv.weight_quantizer.alpha', 'conv.activation_quantizer.threshold'):
        assert (state[key] > 0.01).all(), key


def test_a_negative_learned_range_is_saved_and_folded_as_it_computes():
    net = net_of('learned')
    x = torch.randn(2, 3, 5, 5)
    step(net, x)
    net.eval()
    wanted = net(x)
    with torch.no_grad():
        for layer in (net.conv, net.linear):
            layer.weight_quantizer.alpha.neg_()
            layer.activation_quantizer.threshold.neg_()
    folded = mmgdrq.fold(net)
    torch.testing.assert_close(folded(x), wanted, rtol=1e-4, atol=1e-5)
    state = net.state_dict()
    assert all((value > 0).all() for key, value in state.items() if key.endswith(('alpha', 'threshold')))
    torch.testing.assert_close(net(x), wanted)


# ------------------------------------------------------------------ any float32


@given(
    values=st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=2, max_size=24),
    bits=st.integers(2, 8),
    rule=st.sampled_from([*RULES, 'active_mean', 'lehmer']),
)
def test_any_finite_tensor_gives_finite_codes(values, bits, rule):
    x = torch.tensor(values)
    layer = mmgdrq.Linear(len(values), 2, activation=dict(bits=bits, range=rule)).train()
    y = layer.activation_quantizer(x)
    assert bool(torch.isfinite(y).all())
    assert y.unique().numel() <= 2**bits or not bool(layer.activation_quantizer.initialized)
    if bool(layer.activation_quantizer.initialized):
        assert float(layer.activation_quantizer.threshold) > 0


# ------------------------------------------------------------------ what runs report


def test_an_input_that_turns_negative_later_is_reported(tmp_path):
    runner = toy_runner(tmp_path, 3, dict(activation=dict(bits=4)))
    hook = next(h for h in runner.hooks if type(h).__name__ == 'GDRQHook')
    hook.range_check.interval = 2

    runner.model.conv2.register_forward_pre_hook(lambda m, args: (args[0] - 5 * (runner.iter > 2),))
    runner.train()
    log = log_of(tmp_path)
    assert log.count("the input of 'conv2' is negative in") == 1
    assert 'signed=True' in log
    assert "the input of 'head'" not in log
    assert not runner.model.conv2.activation_quantizer._forward_pre_hooks, 'looks only now and then'


def test_every_layer_is_reported(tmp_path):
    """mmengine's log drops a second warning of the same format string."""
    runner = toy_runner(tmp_path, 3, dict())
    hook = next(h for h in runner.hooks if type(h).__name__ == 'GDRQHook')
    hook.range_check.interval = 2
    for layer in (runner.model.conv2, runner.model.head):
        layer.register_forward_pre_hook(lambda m, args: (args[0] - 5 * (runner.iter > 2),))
    runner.train()
    for name in ('conv2', 'head'):
        assert log_of(tmp_path).count(f"the input of '{name}' is negative in") == 1


def test_an_input_that_is_not_finite_is_reported(tmp_path):
    runner = toy_runner(tmp_path, 3, dict())
    hook = next(h for h in runner.hooks if type(h).__name__ == 'GDRQHook')
    hook.range_check.interval = 2
    runner.model.head.register_forward_pre_hook(lambda m, args: (args[0] / (0.0 if runner.iter > 2 else 1.0),))
    runner.train()
    assert log_of(tmp_path).count("the input of 'head' holds NaN or Inf") == 1
