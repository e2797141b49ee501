"""Quantized layers: their outputs, names and state."""

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmgdrq
from mmgdrq.errors import CheckpointError
from mmgdrq.layers import quantized_layers
from mmgdrq.quant import weight_range
from tests.helpers import reference
from tests.helpers.nets import assert_same, exact, inputs, ranges, set_exact, small_net, trained

BITS = [(2, 4), (4, 8), (3, 2), (8, 8)]


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
    expected = {'gdrq_stage', 'gdrq_frozen'}
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
    conv.eval()(torch.rand(1, 4, 6, 6))
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


def test_loading_drops_what_was_seen_before():
    net, source = trained(small_net()), trained(small_net())
    state = {key: value.clone() for key, value in source.state_dict().items()}
    net(inputs(3) * 100)  # its statistics are still pending
    net.load_state_dict(state)
    assert_same(ranges(net), {key: value for key, value in state.items() if 'quantizer' in key})
    net(inputs(4))
    source(inputs(4))
    assert_same(ranges(net), ranges(source))


def test_loading_one_layer_drops_what_it_has_seen_before():
    net, source = trained(small_net()), trained(small_net())
    state = {key: value.clone() for key, value in source[3].state_dict().items()}
    net(inputs(3) * 100)  # the model, which would settle this, takes no part in the loading
    net[3].load_state_dict(state)
    assert_same(net[3].state_dict(), state)


def test_a_searched_range_is_searched_again_for_float_weights_that_are_loaded():
    layer = mmgdrq.quantize(nn.Sequential(nn.Linear(16, 4)), weight=dict(bits=4, range='search'))
    layer(torch.randn(3, 16))
    state = {'0.weight': 20 * torch.randn(4, 16), '0.bias': torch.zeros(4)}
    layer.load_state_dict(state, strict=False)
    layer(torch.randn(3, 16))
    quantizer = layer[0].weight_quantizer
    assert torch.equal(quantizer.alpha, weight_range(state['0.weight'], quantizer.spec))


@pytest.mark.parametrize('rule', ['search', 'learned'])
def test_float_weights_start_the_ranges_anew(rule):
    quant = dict(weight=dict(bits=3, range=rule), activation=dict(bits=4, range=rule))
    net, fresh = trained(small_net(), **quant), mmgdrq.quantize(small_net(), **quant)
    state = {key: 10 * value for key, value in small_net().state_dict().items()}
    for model in (net, fresh):
        model.load_state_dict(state)
    assert torch.equal(net.train()(inputs()), fresh.train()(inputs()))


def test_other_layers_keep_their_ranges_when_float_weights_of_one_are_loaded():
    net = trained(small_net())
    before = ranges(net)
    net.load_state_dict({'3.weight': torch.randn(4, 4, 3, 3)}, strict=False)
    after = ranges(net)
    assert not bool(after['3.activation_quantizer.initialized'])
    assert_same(*({k: v for k, v in state.items() if not k.startswith('3.')} for state in (before, after)))


def test_a_bias_alone_leaves_the_ranges():
    net = trained(small_net())
    before = ranges(net)
    net.load_state_dict({'3.bias': torch.randn(4)}, strict=False)
    assert_same(before, ranges(net))


@pytest.mark.parametrize('rule', ['lehmer', 'learned'])
def test_a_sign_of_the_config_is_that_of_the_checkpoint(rule):
    def net(signed):
        return mmgdrq.quantize(nn.Sequential(nn.Linear(6, 4)), activation=dict(bits=4, range=rule, signed=signed))

    unsigned = net('auto').train()
    unsigned(torch.rand(3, 6))
    for signed in (False, 'auto'):
        net(signed).load_state_dict(unsigned.state_dict())
    with pytest.raises(CheckpointError, match='trained with signed=False, the config asks for signed=True'):
        net(True).load_state_dict(unsigned.state_dict())
    net(True).load_state_dict(net('auto').state_dict())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_loads_its_own_state(dtype):
    quant = dict(weight=dict(bits=2, k=1.7), activation=dict(bits=4, k=2.3))
    net = trained(small_net(), **quant).to(dtype)
    mmgdrq.quantize(small_net(), **quant).load_state_dict(net.state_dict())
    mmgdrq.quantize(small_net(), **quant).to(dtype).load_state_dict(net.state_dict())
    with pytest.raises(CheckpointError, match=r'k=1\.7'):
        mmgdrq.quantize(small_net(), weight=dict(bits=2, k=1.8)).load_state_dict(net.state_dict())


@pytest.mark.parametrize(('group_size', 'k'), [(513, 3.0), (510, 3.0), (512, 3.01)])
def test_in_single_precision_a_format_is_exact(group_size, k):
    def net(**weight):
        return mmgdrq.quantize(nn.Sequential(nn.Linear(2, 2)), rules=[dict(pattern='0', weight=dict(bits=4, **weight))])

    with pytest.raises(CheckpointError, match='group_size=512'):
        net(group_size=group_size, k=k).load_state_dict(net(group_size=512, k=3.0).state_dict())


def test_a_format_of_integers_is_compared_like_any_other():
    quant = dict(weight=dict(bits=3, range='search'))
    state = mmgdrq.quantize(small_net(), **quant).state_dict()
    whole = {key: value.long() if key.endswith('.format') else value for key, value in state.items()}
    mmgdrq.quantize(small_net(), **quant).load_state_dict(whole)
    with pytest.raises(CheckpointError, match=r'quantized with bits=3, .* the config asks for bits=4'):
        mmgdrq.quantize(small_net(), weight=dict(bits=4, range='search')).load_state_dict(whole)


def test_half_precision_does_not_change_what_a_model_says_of_itself():
    quant = dict(weight=dict(bits=2, k=1.7))
    half = mmgdrq.quantize(small_net(), **quant).half().state_dict()
    net = mmgdrq.quantize(small_net(), **quant)
    net.load_state_dict(half)
    mmgdrq.quantize(small_net(), **quant).load_state_dict(net.state_dict())
