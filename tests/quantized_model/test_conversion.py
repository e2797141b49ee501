"""Quantizing a model, and which checkpoints it takes."""

import pytest
import torch
from torch import nn

import mmgdrq
from mmgdrq.errors import CheckpointError, ConfigError, MMGDRQError
from mmgdrq.layers.walk import is_quantized_model

X = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2))


def quantized(weight=None, activation=None, **args):
    return mmgdrq.quantize(build(), weight or dict(bits=3, group_size=2), activation or dict(bits=4), **args)


def trained(*args, **kwargs):
    net = quantized(*args, **kwargs).train()
    net(X)
    return net


def test_it_works_in_place():
    net = build()
    assert mmgdrq.quantize(net) is net
    assert is_quantized_model(net)
    assert not is_quantized_model(build())
    assert [row.name for row in mmgdrq.state(net).plan] == ['0', '2', '4']
    assert not torch.allclose(net.train()(X), build()(X))


def test_quantizing_twice_is_an_error():
    net = quantized()
    with pytest.raises(ConfigError, match='quantized already'):
        mmgdrq.quantize(net)


def test_an_error_leaves_the_model():
    net = build()
    before = repr(net)
    with pytest.raises(ConfigError):
        mmgdrq.quantize(net, rules=[dict(pattern='nowhere', skip=True)])
    assert repr(net) == before
    mmgdrq.quantize(net)


@pytest.mark.parametrize(
    ('asked', 'match'),
    [
        (dict(weight=dict(bits=2, group_size=2)), r'2\.weight_quantizer: .*bits=3.* the config asks for bits=2'),
        (dict(weight=dict(bits=3, group_size=4)), r'0\.weight_quantizer: .*group_size=2.*group_size=4'),
        (dict(weight=dict(bits=3, group_size=2, grid='narrow_range')), "grid='twos_complement'.*grid='narrow_range'"),
        (dict(weight=dict(bits=3, group_size=2, k=2.2)), r'2\.weight_quantizer: .*k=2\.5.*k=2\.2'),
        (dict(activation=dict(bits=5)), r'2\.activation_quantizer: .*bits=4.* the config asks for bits=5'),
    ],
)
def test_another_format_names_the_layer(asked, match):
    state = trained().state_dict()
    with pytest.raises(CheckpointError, match=match):
        quantized(**asked).load_state_dict(state)


@pytest.mark.parametrize('strict', [False, True])
def test_missing_and_extra_ranges(strict):
    skip = [dict(pattern='2', skip=True)]
    with pytest.raises(CheckpointError, match=r'ranges of the model are missing, such as 2\.'):
        quantized().load_state_dict(trained(rules=skip).state_dict(), strict=strict)
    with pytest.raises(CheckpointError, match=r'layers that the config does not quantize so, such as 2\.'):
        quantized(rules=skip).load_state_dict(trained().state_dict(), strict=strict)


def test_one_missing_range_is_an_error():
    state = trained().state_dict()
    state.pop('4.activation_quantizer.threshold')
    with pytest.raises(CheckpointError, match=r'1 ranges .* such as 4\.activation_quantizer\.threshold'):
        quantized().load_state_dict(state, strict=False)


def test_another_range_rule_is_an_error():
    state = trained(weight=dict(bits=3, group_size=2, range='search')).state_dict()
    with pytest.raises(CheckpointError, match=r'0\.weight_quantizer'):
        quantized().load_state_dict(state)


def test_float_weights_are_taken():
    state = {key: value + 1 for key, value in build().state_dict().items()}
    net = quantized()
    net.load_state_dict(state)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    net.train()(X)


def test_the_same_config_is_taken():
    net, other = trained().eval(), quantized().eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(X), other(X))


def test_a_quantized_model_inside_another_checks_its_part():
    outer = nn.ModuleDict(dict(a=quantized(), b=nn.Linear(2, 2)))
    state = nn.ModuleDict(dict(a=trained(), b=nn.Linear(2, 2))).state_dict()
    outer.load_state_dict(state)
    assert float(outer['a'][0].activation_quantizer.threshold) > 0
    state.pop('a.2.activation_quantizer.signed')
    with pytest.raises(CheckpointError, match=r'a\.2\.activation_quantizer\.signed'):
        outer.load_state_dict(state)


def test_all_errors_have_one_base():
    assert issubclass(CheckpointError, MMGDRQError)
    assert issubclass(ConfigError, MMGDRQError)


def test_a_model_with_a_quantized_part_is_refused():
    part = mmgdrq.quantize(nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(ConfigError, match='model: 1 is quantized already'):
        mmgdrq.quantize(nn.Sequential(nn.Conv2d(3, 3, 1), part))


@pytest.mark.parametrize('calibrated', [False, True])
def test_float_weights_load_strictly(calibrated):
    make = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))  # noqa: E731
    model, weights = mmgdrq.quantize(make()), make().state_dict()
    if calibrated:
        model(torch.rand(2, 3, 9, 9))
    result = model.load_state_dict(weights)
    assert not result.missing_keys
    assert torch.equal(model[2].weight, weights['2.weight'])
    wrapped = nn.ModuleDict(dict(module=model))
    assert not wrapped.load_state_dict({f'module.{key}': value for key, value in weights.items()}).missing_keys
    with pytest.raises(RuntimeError, match=r'Missing key.*"2.weight"'):
        model.load_state_dict({key: value for key, value in weights.items() if key != '2.weight'})


def test_a_model_of_registered_layers_alone_is_led_too():
    model = nn.Sequential(mmgdrq.Conv2d(3, 4, 3), nn.ReLU(), mmgdrq.Conv2d(4, 4, 3))
    mmgdrq.quantize(model, stage='reshape').train()
    x = torch.rand(2, 3, 9, 9)
    clipped = model(x)
    mmgdrq.set_stage(model, 'quantize')
    assert not torch.equal(model(x), clipped)
    assert model[2].activation_quantizer.state.managed
    assert 'is a quantized layer already' in str(mmgdrq.state(model).plan)
