"""Quantized layers: their outputs, their state, and one update of a range an iteration."""

import copy
import io
import pickle
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import mmgdrq
from mmgdrq.errors import QuantizationError
from mmgdrq.layers import ActivationQuantizer, quantized_layers
from mmgdrq.quant import ActivationSpec, weight_range
from tests import reference

BITS = [(2, 4), (4, 8), (3, 2), (8, 8)]


def exact(seed, *shape, signed=True):
    """Multiples of 1/64, whose float32 sums are exact in any order."""
    values = np.random.default_rng(seed).integers(-128 if signed else 0, 128, shape)
    return torch.tensor(values / 64, dtype=torch.float32)


def set_exact(layer, seed=0):
    with torch.no_grad():
        layer.weight.copy_(exact(seed, *layer.weight.shape))
    return layer


class SharedHead(nn.Module):
    """A head that is called once a level."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.tower = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, levels):
        return [self.last(F.relu(self.tower(F.relu(self.stem(x))))) for x in levels]


class Checkpointed(nn.Module):
    """A block whose forward pass may be computed again in the backward pass."""

    def __init__(self, again=None):
        super().__init__()
        self.again = again
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = self.block(x) if self.again is None else checkpoint(self.block, x, use_reentrant=self.again)
        x = x + self.block(F.relu(x) * 3)  # this call is not computed again
        return self.last(F.relu(x))


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
        nn.Linear(4 * 16, 5),
        nn.ReLU(),
        nn.Linear(5, 2),
    )


def inputs(seed=0):
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def trained(net, steps=2, **quant):
    quant = quant or dict(weight=dict(bits=3), activation=dict(bits=4))
    net = mmgdrq.quantize(net, **quant).train()
    for seed in range(steps):
        net(inputs(seed))
    net.state_dict()  # settles what the last iteration saw
    return net


def ranges(model):
    """Buffers of all quantizers, as a checkpoint would hold them."""
    return {k: v.clone() for k, v in model.state_dict().items() if 'quantizer' in k}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


@pytest.mark.parametrize('group_size', [1, 4, -1])
@pytest.mark.parametrize('bits', BITS)
@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_output_is_the_float_layer_on_quantized_operands(kind, signed, bits, group_size):
    weight_bits, input_bits = bits
    config = dict(
        weight=dict(bits=weight_bits, group_size=group_size, k=2.5, grid='twos_complement'),
        activation=dict(bits=input_bits, k=2.0, range='mean'),
    )
    if kind == 'conv':
        layer = mmgdrq.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, **config)
        x = exact(1, 2, 4, 7, 7, signed=signed)
    else:
        layer = mmgdrq.Linear(10, 6, **config)
        x = exact(1, 3, 5, 10, signed=signed)
    set_exact(layer)
    layer.train()(x)
    result = layer.eval()(x)
    weight, values = layer.weight.detach().numpy(), x.numpy()
    alphas = np.float32(2.5) * reference.mean_abs(weight, group_size)
    weight = torch.from_numpy(reference.fake_quantize_weight(weight, alphas, weight_bits, group_size))
    threshold = np.float32(2.0 * reference.statistic([values], 'mean'))
    values = torch.from_numpy(reference.fake_quantize_activation(values, threshold, input_bits, signed))
    if kind == 'conv':
        expected = F.conv2d(values, weight, layer.bias, 2, 1, 1, 2)
    else:
        expected = F.linear(values, weight, layer.bias)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert float((result - layer_as_float(layer)(x)).detach().abs().max()) > 1e-3, 'quantization changes something'


def layer_as_float(layer):
    if isinstance(layer, nn.Conv2d):
        return lambda x: F.conv2d(x, layer.weight, layer.bias, 2, 1, 1, 2)
    return lambda x: F.linear(x, layer.weight, layer.bias)


def test_state_keys():
    net = mmgdrq.quantize(small_net())
    added = set(net.state_dict()) - set(small_net().state_dict())
    buffers = ('format', 'threshold', 'signed', 'initialized')
    expected = {'gdrq_stage'}
    for name in ('0', '3', '5', '7'):
        expected.add(f'{name}.weight_quantizer.format')
        expected |= {f'{name}.activation_quantizer.{buffer}' for buffer in buffers}
    assert added == expected


def test_parameters_and_names_stay_the_same_objects():
    net = small_net()
    before = dict(net.named_parameters())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    mmgdrq.quantize(net)
    after = dict(net.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    old = {name: value.clone() for name, value in after.items()}
    net.train()(inputs()).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(old[name], after[name]) for name in ('0.weight', '3.weight', '5.weight', '7.bias'))


def test_hooks_and_aliases_stay():
    net = small_net()
    net.alias = net[3]
    seen = []
    net[3].register_forward_hook(lambda module, args, output: seen.append(module))
    net.forward = lambda x: nn.Sequential(*list(net)[:3])(x)  # the alias is not a step of the sequence
    conv = net[3]
    mmgdrq.quantize(net)
    assert net[3] is conv is net.alias
    conv.activation_quantizer.set_range(torch.tensor(1.0), signed=False)
    conv.train()(torch.rand(1, 4, 6, 6))
    assert seen == [conv]
    assert sum(layer is conv for layer in quantized_layers(net)) == 1


def test_the_class_is_a_direct_subclass_of_torch():
    net = mmgdrq.quantize(small_net())
    assert nn.Conv2d in type(net[3]).__bases__
    assert nn.Linear in type(net[5]).__bases__


def test_a_float_checkpoint_loads():
    net = mmgdrq.quantize(small_net())
    torch.manual_seed(5)
    state = {key: torch.randn_like(value.float()).to(value.dtype) for key, value in small_net().state_dict().items()}
    net.load_state_dict(state)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())


@pytest.mark.parametrize('rule', ['mean', 'search', 'learned', 'minmax'])
def test_copies_are_bit_equal(rule):
    quant = dict(weight=dict(bits=3, range=rule, group_size=3), activation=dict(bits=4, range=rule))
    net = trained(small_net(), **quant)
    x = inputs(9)
    expected = net.eval()(x)
    fresh = mmgdrq.quantize(small_net(), **quant)
    fresh.load_state_dict(net.state_dict())
    stream = io.BytesIO()
    torch.save(net.state_dict(), stream)
    stream.seek(0)
    stored = mmgdrq.quantize(small_net(), **quant)
    stored.load_state_dict(torch.load(stream, weights_only=True))
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fresh, stored):
        assert torch.equal(other.eval()(x), expected)
        assert_same(ranges(other), ranges(net))
        before = ranges(net)
        other.train()(inputs(11) * 3)
        assert_same(ranges(net), before)
        if rule != 'learned':
            assert any(not torch.equal(value, before[key]) for key, value in ranges(other).items())


@pytest.mark.parametrize('rule', ['search', 'learned'])
def test_loading_an_untrained_state_forgets_the_ranges(rule):
    quant = dict(weight=dict(bits=3, range=rule), activation=dict(bits=4, range='mean'))
    net, fresh = trained(small_net(), **quant), mmgdrq.quantize(small_net(), **quant)
    net.load_state_dict(fresh.state_dict())
    assert torch.equal(net.train()(inputs()), fresh.train()(inputs()))


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


@pytest.mark.parametrize('again', [False, True])
def test_activation_checkpointing(again):
    results = []
    for mode in (None, again):
        torch.manual_seed(3)
        net = mmgdrq.quantize(Checkpointed(mode), activation=dict(bits=4, momentum=0.3)).train()
        grads = []
        for seed in range(3):
            net.zero_grad()
            net(inputs(seed) * (seed + 1)).square().sum().backward()
            grads.append({name: p.grad.clone() for name, p in net.named_parameters()})
        results.append((grads, ranges(net)))
    # the first iteration computes with the range of its first call, its recomputation with that of all calls
    for one, two in list(zip(results[0][0], results[1][0]))[1:]:
        for name, grad in one.items():
            torch.testing.assert_close(two[name], grad, rtol=1e-5, atol=1e-6 * float(grad.abs().max()))
    assert_same(results[0][1], results[1][1])
    assert float(results[0][0][0]['block.0.weight'].abs().sum()) > 0


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
    net.gdrq_frozen = True
    for nothing in (x[:0], x * 0):
        assert torch.equal(net.train()(nothing), F.linear(nothing, net[0].weight_quantizer(net[0].weight), net[0].bias))
    with pytest.raises(QuantizationError, match='0: the activation ranges are frozen, but it has none'):
        net(x)
    mmgdrq.set_stage(net, 'float')
    net(x)
    mmgdrq.set_stage(net, 'quantize')
    with pytest.raises(QuantizationError, match='never set'):
        net.eval()(x)
    net.gdrq_frozen = False
    net.train()(x)
    net.gdrq_frozen = True
    net(x)
    net.eval()(x)


def test_frozen_ranges_stay():
    net = trained(small_net())
    net.gdrq_frozen = True
    before = ranges(net)
    for seed in range(3):
        net.train()(inputs(seed) * 10)
    assert_same(ranges(net), before)
    net.gdrq_frozen = False
    net(inputs() * 10)
    after = ranges(net)
    key = '0.activation_quantizer.threshold'
    assert float(after[key]) > float(before[key])


def test_bfloat16_autocast():
    net = mmgdrq.quantize(small_net()).train()
    with torch.autocast('cpu', torch.bfloat16):
        out = net(inputs())
        loss = out.float().square().sum()
    assert out.dtype == torch.bfloat16
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    assert float(net[3].weight.grad.abs().sum()) > 0
    for key, value in ranges(net).items():
        if key.endswith('threshold'):
            assert value.dtype == torch.float32
            assert float(value) > 0


def test_a_float_tensor_of_a_layer_stays_float():
    layer = mmgdrq.Linear(4, 3, weight=dict(bits=32), activation=dict(bits=4)).train()
    x = torch.rand(5, 4)
    layer(x)
    values = reference.fake_quantize_activation(x.numpy(), float(layer.activation_quantizer.threshold), 4, False)
    torch.testing.assert_close(layer(x).detach(), F.linear(torch.from_numpy(values), layer.weight, layer.bias).detach())
    layer = mmgdrq.Linear(4, 3, weight=dict(bits=2, grid='twos_complement'), activation=dict(bits=32)).train()
    weight = layer.weight.detach().numpy()
    quantized = reference.fake_quantize_weight(weight, 2 * reference.mean_abs(weight, 1), 2, 1)
    expected = F.linear(x, torch.from_numpy(quantized), layer.bias)
    torch.testing.assert_close(layer(x).detach(), expected.detach())


@pytest.mark.parametrize('group_size', [1, 2, -1])
def test_gradient_scale_of_a_learned_weight_range_counts_the_group(group_size):
    torch.manual_seed(4)
    layer = mmgdrq.Linear(
        8,
        4,
        bias=False,
        weight=dict(bits=2, range='learned', group_size=group_size, grid='twos_complement'),
        activation=dict(bits=32),
    )
    x = torch.eye(8)
    layer(x).sum().backward()
    alpha = layer.weight_quantizer.alpha
    weight, step = layer.weight.detach(), alpha.detach() / 2
    for number, part in enumerate(reference.groups(4, group_size)):
        scaled = weight[part] / step[number]
        inside = (scaled >= -2) & (scaled <= 1)
        slope = torch.where(inside, scaled.round() - scaled, scaled.clamp(-2, 1)).sum()
        gradient = float(slope) * (weight[part].numel() * 1) ** -0.5  # of the step, by LSQ
        assert float(alpha.grad[number]) == pytest.approx(2 * gradient, rel=1e-4)  # alpha = 2 * step


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_sgd_moves_a_learned_range_as_lsq_moves_its_step(bits):
    levels = 2**bits - 1
    quantizer = ActivationQuantizer(ActivationSpec(bits=bits, range='learned', signed=False)).train()
    quantizer.set_range(torch.tensor(1.5), signed=False)
    step = nn.Parameter(torch.tensor(1.5 / levels))
    optimizers = [torch.optim.SGD(parameters, 1e-3, momentum=0.9) for parameters in (quantizer.parameters(), [step])]
    moved = []
    for number in range(5):
        x = torch.randn(512, generator=torch.Generator().manual_seed(number)).abs()
        factor = (x.numel() * levels) ** -0.5
        scaled = step * factor + (step - step * factor).detach()
        codes = (x / scaled).clamp(0, levels)
        expected = (codes + (codes.round() - codes).detach()) * scaled
        for result in (quantizer(x), expected):
            (result - x).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        moved.append(quantizer.threshold.item())
        assert moved[-1] == pytest.approx(levels * step.item(), rel=1e-4)
    assert max(moved) - min(moved) > 1e-3


def test_training_a_quantized_net_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        net = mmgdrq.quantize(small_net()).train()
        net(inputs()).sum().backward()


@pytest.mark.parametrize(('cls', 'args'), [(mmgdrq.Conv2d, (4, 3, 1)), (mmgdrq.Linear, (4, 3))])
def test_the_input_has_the_name_it_has_in_torch(cls, args):
    layer, x = cls(*args), torch.rand(2, 4, 4, 4)
    layer.train()(x)
    assert torch.equal(layer.eval()(input=x), layer(x))


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
    net.gdrq_frozen = True
    before = ranges(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    net.train()(inputs(5) * 10)
    assert_same(ranges(net), before)
    net.gdrq_frozen = False
    net(inputs(5) * 10)
    after = ranges(net)
    if rule == 'search':
        assert not torch.equal(after['3.weight_quantizer.alpha'], before['3.weight_quantizer.alpha'])


@pytest.mark.parametrize('again', [False, True])
def test_a_block_that_is_computed_again_counts_once(again):
    net = mmgdrq.quantize(Checkpointed(again), activation=dict(bits=8, range='mean', momentum=0.5, k=3.0)).train()
    seen, iterations = [], []
    quantizer = net.block[0].activation_quantizer
    quantizer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().numpy()))
    for seed in range(3):
        out = net(inputs(seed) * (seed + 1))
        iterations.append(list(seen))
        out.sum().backward()
        assert len(seen) == 3, 'two calls and one recomputation'
        seen.clear()
    found = float(net.state_dict()['block.0.activation_quantizer.threshold'])
    assert found == pytest.approx(reference.running_threshold(iterations, 3.0, 0.5), rel=1e-5)


@pytest.mark.parametrize('again', [False, True])
def test_checkpointing_a_block_of_one_call_changes_no_gradient_from_the_first_iteration_on(again):
    class Single(Checkpointed):
        def forward(self, x):
            x = F.relu(self.stem(x))
            x = self.block(x) if self.again is None else checkpoint(self.block, x, use_reentrant=self.again)
            return self.last(F.relu(x))

    grads = []
    for mode in (None, again):
        torch.manual_seed(3)
        net = mmgdrq.quantize(Single(mode)).train()
        net(inputs()).square().sum().backward()
        grads.append({name: p.grad for name, p in net.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-5, atol=1e-6 * float(grad.abs().max()))


@pytest.mark.parametrize('rule', ['mean', 'search', 'learned', 'minmax'])
def test_several_forward_passes_before_one_backward_pass(rule):
    torch.manual_seed(3)
    net = mmgdrq.quantize(SharedHead(), dict(bits=3, range=rule), dict(bits=4, range=rule)).train()
    loss = sum(net([torch.randn(1, 3, 5, 5)])[0].square().sum() for _ in range(3))
    net.state_dict()  # as a checkpoint hook might do
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())
    assert float(net.tower.weight.grad.abs().sum()) > 0


def test_a_frozen_part_in_eval_mode_gets_and_follows_its_ranges():
    """frozen_stages of OpenMMLab: a part is in eval mode while the model trains."""
    net = mmgdrq.quantize(small_net()).train()
    net[0].eval()
    net(inputs())
    first = float(net.state_dict()['0.activation_quantizer.threshold'])
    assert first > 0
    net(inputs() * 10)
    assert float(net.state_dict()['0.activation_quantizer.threshold']) > first


def test_loading_drops_what_was_seen_before():
    net, source = trained(small_net()), trained(small_net())
    state = {key: value.clone() for key, value in source.state_dict().items()}
    net(inputs(3) * 100)  # its statistics are still pending
    net.load_state_dict(state)
    assert_same(ranges(net), {key: value for key, value in state.items() if 'quantizer' in key})
    net(inputs(4))
    source(inputs(4))
    assert_same(ranges(net), ranges(source))


def test_a_searched_range_is_searched_again_for_float_weights_that_are_loaded():
    layer = mmgdrq.quantize(nn.Sequential(nn.Linear(16, 4)), weight=dict(bits=4, range='search'))
    layer(torch.randn(3, 16))
    state = {'0.weight': 20 * torch.randn(4, 16), '0.bias': torch.zeros(4)}
    layer.load_state_dict(state, strict=False)
    layer(torch.randn(3, 16))
    quantizer = layer[0].weight_quantizer
    assert torch.equal(quantizer.alpha, weight_range(state['0.weight'], quantizer.spec))


class CountSynchronizations(TorchDispatchMode):
    """Counts what a GPU would have to wait for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return function(*args, **(kwargs or {}))


class PartlyUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused, self.last = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        return self.last(self.second(self.first(x).relu()).relu())


@pytest.mark.parametrize('stage', ['float', 'reshape', 'quantize'])
@pytest.mark.parametrize('rule', ['lehmer', 'learned', 'minmax'])
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


@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_frozen_learned_ranges_keep_their_value(momentum):
    config = dict(weight=dict(range='learned'), activation=dict(range='learned'))
    net = mmgdrq.quantize(PartlyUsed(), **config).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=momentum, weight_decay=0.1)

    def ranges():
        return {k: v.clone() for k, v in net.state_dict().items() if k.endswith(('alpha', 'threshold'))}

    def train():
        net(exact(0, 5, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    train()
    before = ranges()
    train()
    frozen = ranges()
    assert any(not torch.equal(before[key], frozen[key]) for key in before)
    net.gdrq_frozen = True
    for _ in range(3):
        train()
        outputs = net.eval()(exact(0, 5, 6))
        net.train()
        assert all(torch.equal(value, frozen[key]) for key, value in ranges().items())
    assert not torch.equal(outputs, torch.zeros_like(outputs))
    net.gdrq_frozen = False
    train()
    assert any(not torch.equal(value, frozen[key]) for key, value in ranges().items())


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


def test_large_half_precision_inputs_calibrate():
    layer = mmgdrq.Linear(4, 4, activation=dict(range='minmax')).half().train()
    layer.activation_quantizer(torch.tensor([4e4, -4e4], dtype=torch.float16))
    assert float(layer.activation_quantizer.threshold) == 40000


def steps_in(dtype, weight, activation, codes):
    """Outputs of four training steps in ``dtype`` and of the evaluation after them, and the last gradient."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4), nn.Linear(4, 2)
    )
    config = dict(weight=dict(bits=8, range=weight), activation=dict(bits=8, range=activation))
    model = mmgdrq.quantize(net, **config).train()
    mmgdrq.set_execution(model, codes=codes)
    model.to(dtype)
    lr = 1e-4 if 'learned' in (weight, activation) else 0.01  # learned ranges move far with little
    optimizer = torch.optim.SGD(model.parameters(), lr)
    mmgdrq.ScaleClip(model).attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    results = []
    for _ in range(4):
        y = model(torch.randn(4, 3, 8, 8, generator=generator).to(dtype))
        optimizer.zero_grad()
        y.float().square().mean().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(bool(grad.isfinite().all()) and grad.dtype == dtype for grad in grads)
        optimizer.step()
        results.append(y.detach())
    model.eval()
    with torch.no_grad():
        results.append(model(torch.randn(4, 3, 8, 8, generator=generator).to(dtype)))
    assert {y.dtype for y in results} == {dtype}
    return torch.stack(results).float(), model[2].weight.grad.float()


RULES = [
    ('mean', 'lehmer'),
    ('mean', 'mean'),
    ('search', 'active_mean'),
    ('minmax', 'minmax'),
    ('search', 'search'),
    ('learned', 'learned'),
]


@pytest.mark.parametrize('codes', [True, False])
@pytest.mark.parametrize(('dtype', 'near'), [(torch.float64, 0.01), (torch.float16, 0.03), (torch.bfloat16, 0.15)])
@pytest.mark.parametrize(('weight', 'activation'), RULES)
def test_a_model_trains_in_every_dtype(dtype, near, weight, activation, codes):
    results = [steps_in(of, weight, activation, codes) for of in (dtype, torch.float32)]
    for mine, expected in zip(*results):
        assert bool(mine.isfinite().all())
        assert float((mine - expected).norm()) < near * float(expected.norm())


def test_training_around_the_model_is_an_error():
    net = mmgdrq.quantize(PartlyUsed()).train()
    with pytest.raises(QuantizationError, match=r'first: .* outside of the forward pass .* Call the model itself'):
        net.forward(exact(0, 5, 6))
    net(exact(0, 5, 6))
    net.forward(exact(0, 5, 6))
