"""A config is done to a model, whole or not at all."""

import pytest
import torch
from torch import nn

import mmgdrq
from mmgdrq import QuantConfig
from mmgdrq.config.apply import apply_config
from mmgdrq.errors import ConfigError, QuantizationError
from mmgdrq.layers import Linear
from mmgdrq.planning import policy
from tests.helpers.plans import classifier

X = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2))


def test_a_config_says_what_arguments_say():
    quant = dict(weight=dict(bits=3), activation=dict(bits=5), rules=[dict(pattern='4', skip=True)])
    models = [
        mmgdrq.quantize(build(), **quant),
        mmgdrq.quantize(build(), config=quant),
        mmgdrq.quantize(build(), config=QuantConfig(**quant)),
    ]
    outputs = [model.train()(X) for model in models]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert mmgdrq.plan(build(), config=QuantConfig(**quant)) == mmgdrq.state(models[0]).plan
    with pytest.raises(ConfigError, match='config: it says all'):
        mmgdrq.quantize(build(), dict(bits=4), config=quant)
    with pytest.raises(ConfigError, match='config: expected a dict'):
        mmgdrq.quantize(build(), config=2)
    with pytest.raises(ConfigError, match=r"config: unknown key 'rule'. Did you mean 'rules'"):
        mmgdrq.plan(build(), config=dict(rule=[]))


def test_a_plan_beside_the_rest_of_a_config():
    plan = mmgdrq.plan(build()).set('2', weight_bits=6)
    model = mmgdrq.quantize(build(), plan=plan, config=dict(stages=dict(reshape=0, quantize=2)))
    assert model[2].weight_quantizer.spec.bits == 6
    assert mmgdrq.get_stage(model) == 'reshape'


def test_stages_of_a_config_need_somebody_who_leads():
    model = mmgdrq.quantize(build(), config=dict(stages=dict(reshape=0, quantize=2))).train()
    with pytest.raises(ConfigError, match='nothing leads the model'):
        model(X)
    mmgdrq.set_stage(model, 'quantize')
    model(X)
    saved = mmgdrq.quantize(build(), stage='float').state_dict()
    model.load_state_dict(saved)
    assert mmgdrq.get_stage(model) == 'float', 'a config with stages follows the checkpoint'
    other = mmgdrq.quantize(build())
    other.load_state_dict(saved)
    assert mmgdrq.get_stage(other) == 'quantize'


def test_execution_of_a_config():
    model = mmgdrq.quantize(build(), config=dict(execution=dict(cache=False, lean_relu=False)))
    assert type(model[1]) is nn.ReLU
    assert not model[0].weight_quantizer.cache.enabled


def parts(model: nn.Module) -> list:
    return [
        (
            name,
            module,
            type(module),
            sorted(vars(module)),
            *map(len, (module._forward_pre_hooks, module._forward_hooks)),
        )
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize('failing', [1, 2, 3])
def test_an_error_half_way_leaves_the_model_as_it_was(monkeypatch, failing):
    """Whatever raises, and wherever."""
    calls = []

    def attach(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == failing:
            raise RuntimeError('out of memory')
        original(self, *args, **kwargs)

    original = Linear.attach
    for cls in (mmgdrq.Conv2d, Linear):
        monkeypatch.setattr(cls, 'attach', attach)
    model = build().eval()
    before, output = parts(model), model(X)
    with pytest.raises(RuntimeError, match='out of memory'):
        mmgdrq.quantize(model)
    assert parts(model) == before
    assert torch.equal(model(X), output)
    assert list(model.state_dict()) == list(build().state_dict())
    monkeypatch.undo()
    assert len(mmgdrq.state(mmgdrq.quantize(model)).plan.quantized) == 3


def test_a_simulation_that_fails_leaves_the_model_as_it_was(monkeypatch):
    def fail(*args):
        raise RuntimeError('no such engine')

    monkeypatch.setattr('mmgdrq.config.apply.simulate', fail)
    model = build()
    before = parts(model)
    with pytest.raises(RuntimeError, match='no such engine'):
        apply_config(model, QuantConfig(deploy='onnxruntime'))
    assert parts(model) == before


def test_planning_happens_once(monkeypatch, tmp_path):
    from mmengine.registry import MODELS

    from tests.helpers.toy import toy_runner

    counted = []
    original = policy.inventory
    monkeypatch.setattr(policy, 'inventory', lambda model: counted.append(model) or original(model))
    mmgdrq.quantize(classifier())
    assert len(counted) == 1
    MODELS.build(dict(type='mmgdrq.Quantized', base_type='ToyModel'))
    assert len(counted) == 2
    toy_runner(tmp_path, hook={}).call_hook('before_run')
    assert len(counted) == 3


@pytest.mark.parametrize('ran', [False, True])
def test_a_compiled_model_is_quantized_inside(ran):
    wanted = mmgdrq.quantize(build()).train()
    net = build()
    compiled = torch.compile(net, backend='eager').train()
    if ran:
        compiled(X)
    assert mmgdrq.plan(compiled) == mmgdrq.plan(net)
    assert mmgdrq.quantize(compiled) is compiled
    assert [row.name for row in mmgdrq.state(net).plan] == ['0', '2', '4']
    for _ in range(2):
        assert torch.allclose(compiled(X), wanted(X), rtol=0, atol=1e-6)
    assert not torch.allclose(compiled(X), build().train()(X), rtol=0, atol=1e-3)
    mmgdrq.set_stage(compiled, 'float')
    assert torch.allclose(compiled(X), build().train()(X), rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match='quantized already'):
        mmgdrq.quantize(compiled)


def test_a_compiled_part_is_quantized_too():
    wanted, net = mmgdrq.quantize(build()).train(), build()
    model = nn.Sequential(torch.compile(net[:3], backend='eager'), net[3:]).train()
    mmgdrq.quantize(model)
    for _ in range(2):
        assert torch.allclose(model(X), wanted(X), rtol=0, atol=1e-6)


def test_a_model_on_the_meta_device():
    trained = mmgdrq.quantize(build()).train()
    trained(X)
    with torch.device('meta'):
        model = build()
    before = parts(model)
    with pytest.raises(QuantizationError, match=r'0: its weight is on the meta device.*to_empty.*then load'):
        mmgdrq.quantize(model)
    assert parts(model) == before
    with torch.device('meta'), pytest.raises(QuantizationError, match='meta device'):
        mmgdrq.Conv2d(3, 4, 3)
    model.to_empty(device='cpu')
    mmgdrq.quantize(model).load_state_dict(trained.state_dict())
    assert torch.equal(model.eval()(X), trained.eval()(X)), 'as the error says'


def test_the_plan_of_a_quantized_model_is_what_its_layers_are():
    model = mmgdrq.quantize(build(), dict(bits=3), rules=[dict(pattern='4', skip=True)])
    now = mmgdrq.plan(model)
    planned = mmgdrq.state(model).plan
    assert [(row.weight, row.activation, row.reason) for row in now] == [
        (row.weight, row.activation, row.reason) for row in planned
    ]
    model[2] = mmgdrq.quantize(nn.Sequential(nn.Conv2d(4, 4, 3)), dict(bits=5))[0]
    now = mmgdrq.plan(model)
    assert [row.weight and row.weight.bits for row in now] == [8, 8, None], 'of the layer that is there, a first one'
    with pytest.raises(ConfigError, match='plan: the model is quantized already'):
        mmgdrq.plan(model, dict(bits=4))
