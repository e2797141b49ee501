"""One update of a range per iteration: which inputs count, and which do not."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mmgdrq
from mmgdrq.errors import QuantizationError
from mmgdrq.quant import keep_in_graph
from mmgdrq.quantized_model.iteration import manage_registered
from tests.helpers import reference
from tests.helpers.nets import PartlyUsed, SharedHead, assert_same, exact, inputs, ranges, small_net, trained


@pytest.mark.parametrize('rule', ['mean', 'active_mean', 'lehmer'])
def test_one_update_an_iteration_of_a_shared_layer(rule):
    torch.manual_seed(1)
    config = dict(bits=8, range=rule, momentum=0.25, signed=False, k=3.0)
    net = mmgdrq.quantize(SharedHead(), activation=config).train()
    seen = []
    net.tower.activation_quantizer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().numpy()))
    iterations = []
    for seed in range(4):
        net([torch.randn(1, 3, size, size) * (seed + 1) for size in (9, 5, 2)])
        iterations.append(list(seen))
        seen.clear()
    assert all(len(calls) == 3 for calls in iterations)
    found = float(net.state_dict()['tower.activation_quantizer.threshold'])
    assert found == pytest.approx(reference.running_threshold(iterations, 3.0, 0.25, rule), rel=1e-5)


@pytest.mark.parametrize('codes', [False, True])
def test_a_threshold_follows_an_input_that_grows_a_trillionfold(codes):
    layer = mmgdrq.Conv2d(2, 2, 1, activation=dict(bits=4, momentum=0.5, signed=False)).train()
    layer.one_byte = codes
    x = torch.rand(1, 2, 5, 5)
    layer(x * 1e-13)
    for _ in range(20):
        layer(x)
    layer.activation_quantizer.update()
    expected = 1.8 * reference.statistic([x.numpy()], 'lehmer')
    assert float(layer.activation_quantizer.threshold) == pytest.approx(expected, rel=1e-3)


def test_the_order_of_the_calls_does_not_matter():
    torch.manual_seed(2)
    net = mmgdrq.quantize(SharedHead())
    other = copy.deepcopy(net)
    levels = [torch.rand(1, 3, 4, 4), torch.rand(1, 3, 8, 8) * 9, torch.randn(1, 3, 2, 2)]
    net.train()(levels)
    other.train()(levels[::-1])
    key = 'stem.activation_quantizer.'
    assert bool(net.state_dict()[key + 'signed']) is bool(other.state_dict()[key + 'signed']) is True
    assert float(net.state_dict()[key + 'threshold']) == pytest.approx(float(other.state_dict()[key + 'threshold']))


def test_a_standalone_layer_updates_itself():
    layer = mmgdrq.Linear(6, 2, activation=dict(k=2.0, range='mean', momentum=0.5)).train()
    calls = [torch.rand(3, 6) * scale for scale in (1, 5, 2)]
    for x in calls:
        layer(x)
    expected = reference.running_threshold([[x.numpy()] for x in calls], 2.0, 0.5)
    assert float(layer.activation_quantizer.threshold) == pytest.approx(expected, rel=1e-5)


def test_empty_inputs_pass_and_change_nothing():
    net = mmgdrq.quantize(SharedHead()).train()
    empty = torch.zeros(0, 3, 4, 4)
    before = ranges(net)
    out = net([empty])[0]
    assert out.shape == (0, 2, 4, 4)
    assert_same(ranges(net), before)
    net([torch.rand(1, 3, 4, 4)])
    before = ranges(net)
    net([empty])
    assert_same(ranges(net), before)
    assert net.eval()([empty])[0].shape == (0, 2, 4, 4)


def test_all_zero_input_waits_for_the_first_real_one():
    net = mmgdrq.quantize(small_net()).train()
    net(torch.zeros(2, 3, 6, 6))
    assert not bool(net.state_dict()['0.activation_quantizer.initialized'])
    net(inputs())
    state = net.state_dict()
    assert bool(state['0.activation_quantizer.initialized'])
    assert bool(state['0.activation_quantizer.signed'])
    assert float(state['0.activation_quantizer.threshold']) > 0


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_first_batch_that_is_not_finite_names_the_layer(bad):
    net = mmgdrq.quantize(SharedHead()).train()
    x = torch.rand(1, 3, 4, 4)
    x[0, 0, 0, 0] = bad
    with pytest.raises(QuantizationError, match='stem: its first input is not finite'):
        net([x])


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_later_batch_that_is_not_finite_leaves_the_ranges(bad):
    net = trained(small_net())
    before = ranges(net)
    x = inputs()
    x[0, 0, 0, 0] = bad
    net(x)
    after = ranges(net)
    assert torch.equal(after['0.activation_quantizer.threshold'], before['0.activation_quantizer.threshold'])
    net(inputs())
    assert all(bool(value.isfinite().all()) for key, value in ranges(net).items() if key.endswith('threshold'))


def test_eval_before_training_names_the_layer():
    net = mmgdrq.quantize(small_net()).eval()
    with pytest.raises(QuantizationError, match='0: its activation range was never set'):
        net(inputs())
    float_weights = mmgdrq.quantize(small_net()).eval()
    float_weights.load_state_dict(small_net().state_dict(), strict=False)
    with pytest.raises(QuantizationError, match='float checkpoint'):
        float_weights(inputs())


@pytest.mark.parametrize('rule', ['mean', 'search', 'learned', 'minmax'])
def test_eval_changes_no_buffer(rule):
    quant = dict(weight=dict(bits=3, range=rule), activation=dict(bits=4, range=rule))
    net = trained(small_net(), **quant).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    first = net(inputs(20) * 10)
    net(inputs(21))
    assert torch.equal(net(inputs(20) * 10), first)
    assert_same({key: value.clone() for key, value in net.state_dict().items()}, before)


def test_a_frozen_layer_needs_a_range_for_what_is_not_zero():
    x = exact(0, 3, 6)
    net = mmgdrq.quantize(nn.Sequential(nn.Linear(6, 4)))
    mmgdrq.freeze(net)
    for nothing in (x[:0], x * 0):
        assert torch.equal(net.train()(nothing), F.linear(nothing, net[0].weight_quantizer(net[0].weight), net[0].bias))
    with pytest.raises(QuantizationError, match='0: the activation ranges are frozen, but it has none'):
        net(x)
    mmgdrq.set_stage(net, 'float')
    net(x)
    mmgdrq.set_stage(net, 'quantize')
    with pytest.raises(QuantizationError, match='never set'):
        net.eval()(x)
    mmgdrq.freeze(net, False)
    net.train()(x)
    mmgdrq.freeze(net)
    net(x)
    net.eval()(x)


def test_frozen_ranges_stay():
    net = trained(small_net())
    mmgdrq.freeze(net)
    before = ranges(net)
    for seed in range(3):
        net.train()(inputs(seed) * 10)
    assert_same(ranges(net), before)
    mmgdrq.freeze(net, False)
    net(inputs() * 10)
    after = ranges(net)
    key = '0.activation_quantizer.threshold'
    assert float(after[key]) > float(before[key])


def test_the_first_batch_sets_the_range_at_once():
    layer = mmgdrq.Linear(6, 2, activation=dict(k=2.0, range='mean', momentum=0.01)).train()
    x = torch.rand(30, 6)
    result = layer(x)
    threshold = np.float32(2.0 * reference.statistic([x.numpy()], 'mean'))
    assert float(layer.activation_quantizer.threshold) == pytest.approx(float(threshold), rel=1e-6)
    values = torch.from_numpy(reference.fake_quantize_activation(x.numpy(), threshold, 4, False))
    expected = F.linear(values, layer.weight_quantizer(layer.weight), layer.bias)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
@pytest.mark.parametrize('rule', ['mean', 'active_mean', 'lehmer', 'minmax', 'search'])
def test_a_later_call_of_the_first_iteration_that_is_not_finite_names_the_layer(rule, bad):
    net = mmgdrq.quantize(SharedHead(), activation=dict(range=rule)).train()
    good, broken = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    broken[0, 0, 0, 0] = bad
    with pytest.raises(QuantizationError, match='stem: its first input is not finite'):
        net([good, broken])
    thresholds = [value for name, value in net.named_buffers() if name.endswith('threshold')]
    assert all(bool(value.isfinite()) and float(value) > 0 for value in thresholds)


@pytest.mark.parametrize('rule', ['mean', 'search'])
def test_frozen_ranges_stay_while_the_weights_move(rule):
    net = trained(small_net(), weight=dict(bits=3, range=rule), activation=dict(bits=4, range=rule))
    mmgdrq.freeze(net)
    before = ranges(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    net.train()(inputs(5) * 10)
    assert_same(ranges(net), before)
    mmgdrq.freeze(net, False)
    net(inputs(5) * 10)
    after = ranges(net)
    if rule == 'search':
        assert not torch.equal(after['3.weight_quantizer.alpha'], before['3.weight_quantizer.alpha'])


def test_a_frozen_part_in_eval_mode_gets_and_follows_its_ranges():
    """frozen_stages of OpenMMLab: a part is in eval mode while the model trains."""
    net = mmgdrq.quantize(small_net()).train()
    net[0].eval()
    net(inputs())
    first = float(net.state_dict()['0.activation_quantizer.threshold'])
    assert first > 0
    net(inputs() * 10)
    assert float(net.state_dict()['0.activation_quantizer.threshold']) > first


class CountSynchronizations(TorchDispatchMode):
    """Counts what a GPU would have to wait for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize('stage', ['float', 'reshape', 'quantize'])
@pytest.mark.parametrize('rule', ['lehmer', 'learned', 'minmax', 'search', 'percentile'])
def test_a_training_step_waits_for_no_device(stage, rule):
    net = mmgdrq.quantize(PartlyUsed(), activation=dict(range=rule), stage=stage).train()
    mmgdrq.set_execution(net, kernels=False, codes=False)  # on a CPU these read scalars, which costs nothing there
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    mmgdrq.ScaleClip(net).attach(optimizer)
    counter = CountSynchronizations()
    for number in range(4):
        with counter if number > 1 else nullcontext():
            net(exact(number, 5, 6)).square().sum().backward()
            optimizer.step()
    assert counter.count == 0


def test_calls_of_an_iteration_have_one_largest_value():
    head = nn.Linear(4, 4)

    class Levels(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, x):
            return self.head(x) + self.head(10 * x)

    net = mmgdrq.quantize(Levels(), activation=dict(range='minmax')).train()
    x = torch.ones(3, 4)
    for _ in range(2):
        net(x)
    assert float(net.head.activation_quantizer.threshold) == 10


def test_training_around_the_model_is_an_error():
    net = mmgdrq.quantize(PartlyUsed()).train()
    with pytest.raises(QuantizationError, match=r'first: .* outside of the forward pass .* Call the model itself'):
        net.forward(exact(0, 5, 6))
    net(exact(0, 5, 6))
    with pytest.raises(QuantizationError, match=r'first: .* outside of the forward pass'):
        net.forward(exact(0, 5, 6))  # its statistics would not count
    mmgdrq.freeze(net)
    net.forward(exact(0, 5, 6))


def outgrown(layer, x, run):
    """How much a searched range grows over sixty calls with a weight three times as large."""
    run(x)
    quantizer = layer.weight_quantizer
    before = quantizer.alpha.clone()
    with torch.no_grad():
        layer.weight.mul_(3)
    for _ in range(60):
        run(x)
    return float((quantizer.alpha / before).mean())


def test_a_searched_range_follows_the_weight_of_a_registered_layer():
    alone = mmgdrq.Conv2d(3, 8, 3, weight=dict(bits=3, range='search')).train()
    assert outgrown(alone, torch.rand(2, 3, 6, 6), alone) > 2.5
    layer = mmgdrq.Conv2d(3, 8, 3, weight=dict(bits=3, range='search'), activation=dict(bits=32))
    model = nn.Sequential(layer).train()
    manage_registered(model)
    assert outgrown(layer, torch.rand(2, 3, 6, 6), model) > 2.5


def test_a_range_that_a_call_does_not_use_may_change_before_the_backward_pass():
    x, idle = torch.rand(3, requires_grad=True), nn.Parameter(torch.ones(2, 1))
    y = keep_in_graph(x, idle)
    with torch.no_grad():
        idle.add_(1)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(3))
    assert torch.equal(idle.grad, torch.zeros(2, 1))
