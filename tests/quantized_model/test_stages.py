"""What the quantizers do in every stage."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmgdrq
from mmgdrq.errors import ConfigError, QuantizationError
from mmgdrq.layers import QUANTIZE
from mmgdrq.layers.walk import activation_quantizers, quantized_layers
from mmgdrq.quantized_model.iteration import manage_registered
from mmgdrq.quantized_model.stages import STAGES
from tests.helpers import reference
from tests.helpers.nets import inputs, small_net

X = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) * 3


def net(stage='quantize', **args):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5))
    rules = [dict(pattern='0', weight=dict(bits=3), activation=dict(bits=3, range='mean', k=1.2))]
    return mmgdrq.quantize(model, rules=rules, stage=stage, **args)


def expected(model, stage):
    weight = model[0].weight.detach().numpy()
    threshold = float(model[0].activation_quantizer.threshold)
    inputs = X.numpy()
    if stage in ('quantize_weight', 'quantize'):
        weight = reference.fake_quantize_weight(weight, 2.5 * reference.mean_abs(weight, 1), 3, 1)
    if stage in ('reshape', 'quantize_weight'):
        inputs = inputs.clip(0, threshold)
    elif stage == 'quantize':
        inputs = reference.fake_quantize_activation(inputs, threshold, 3, False)
    return F.linear(torch.as_tensor(inputs), torch.as_tensor(weight), model[0].bias)


@pytest.mark.parametrize('stage', STAGES)
def test_what_a_stage_computes(stage):
    model = net().train()
    model(X)
    mmgdrq.set_stage(model, stage)
    assert mmgdrq.get_stage(model) == stage
    torch.testing.assert_close(model.eval()(X), expected(model, stage), rtol=1e-4, atol=1e-5)


def test_the_stages_differ():
    model = net().train()
    model(X)
    outputs = []
    for stage in STAGES:
        mmgdrq.set_stage(model, stage)
        outputs.append(model.eval()(X))
    assert all(not torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


def test_float_needs_no_range_and_the_other_stages_do():
    model = net('float').eval()
    assert torch.equal(model(X), F.linear(X, model[0].weight, model[0].bias))
    for stage in STAGES[1:]:
        mmgdrq.set_stage(model, stage)
        with pytest.raises(QuantizationError):
            model(X)


def test_thresholds_of_the_reshape_stage_carry_over():
    model = net('reshape').train()
    model(X)
    threshold = float(model.state_dict()['0.activation_quantizer.threshold'])
    assert threshold == pytest.approx(1.2 * float(X.mean()), rel=1e-5)
    mmgdrq.set_stage(model, 'quantize')
    assert float(model.state_dict()['0.activation_quantizer.threshold']) == threshold


@pytest.mark.parametrize('stage', ['quantise', '', 'FLOAT', None])
def test_an_unknown_stage(stage):
    model = net()
    with pytest.raises(ConfigError, match='Expected one of float, reshape, quantize_weight, quantize'):
        mmgdrq.set_stage(model, stage)
    assert mmgdrq.get_stage(model) == 'quantize'


@pytest.mark.parametrize('stage', ['quantise', '', ['float']])
def test_an_unknown_first_stage_leaves_the_model_as_it_is(stage):
    model = nn.Sequential(nn.Linear(6, 5))
    before = repr(model), list(model.state_dict())
    with pytest.raises(ConfigError, match='Expected one of float, reshape, quantize_weight, quantize'):
        mmgdrq.quantize(model, stage=stage)
    assert (repr(model), list(model.state_dict())) == before
    mmgdrq.quantize(model, stage='reshape')


@pytest.mark.parametrize('saved', STAGES)
@pytest.mark.parametrize('asked', STAGES)
@pytest.mark.parametrize('follow', [False, True])
def test_loading_a_checkpoint_of_another_stage(saved, asked, follow):
    source, model = net(saved).train(), net(asked, follow_checkpoint=follow)
    source(X)
    mmgdrq.set_stage(source, saved)
    model.load_state_dict(source.state_dict())
    stage = saved if follow else asked
    assert mmgdrq.get_stage(model) == stage
    assert STAGES[int(model.gdrq_stage)] == stage
    reference_model = copy.deepcopy(source)
    mmgdrq.set_stage(reference_model, stage)
    if stage == 'float' or saved != 'float':
        assert torch.equal(model.eval()(X), reference_model.eval()(X))


@pytest.mark.parametrize('follow', [False, True])
def test_float_weights_leave_the_stage(follow):
    model = net('reshape', follow_checkpoint=follow)
    torch.manual_seed(3)
    model.load_state_dict(nn.Sequential(nn.Linear(6, 5)).state_dict(), strict=False)
    assert mmgdrq.get_stage(model) == 'reshape'


def test_a_copy_has_a_stage_of_its_own():
    model = net('reshape')
    other = copy.deepcopy(model)
    mmgdrq.set_stage(other, 'quantize')
    assert mmgdrq.get_stage(model) == 'reshape'


@pytest.mark.parametrize('stage', ['reshape', 'quantize_weight', 'quantize'])
def test_the_backward_pass_knows_the_threshold_of_its_own_forward_pass(stage):
    """A checkpoint, or another forward pass, in between moves the running threshold."""
    gradients = []
    for between in (lambda model: None, lambda model: model.state_dict(), lambda model: model(X * 9)):
        model = net(stage).train()
        model(X)
        loss = model(X * 2).square().sum()
        between(model)
        loss.backward()
        gradients.append(model[0].weight.grad)
    assert float(gradients[0].abs().sum()) > 0
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients[1:])


def test_a_float_model_has_no_stage():
    with pytest.raises(ConfigError, match=r'not quantized. Call mmgdrq.quantize'):
        mmgdrq.set_stage(nn.Linear(2, 2), 'reshape')
    with pytest.raises(ConfigError, match=r'get_stage: .*not quantized. Call mmgdrq.quantize'):
        mmgdrq.get_stage(nn.Linear(2, 2))


def with_norm():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return mmgdrq.quantize(model, activation=dict(bits=4, range='learned'))


def test_freeze_in_a_training_loop_of_ones_own():
    model, images = with_norm(), torch.randn(4, 3, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def train():
        model.train()(images).square().sum().backward()
        optimizer.step()
        return {key: value.clone() for key, value in model.state_dict().items()}

    def moved(before, after):
        return {key for key in before if not torch.equal(before[key], after[key])}

    ranges = {f'{layer}.activation_quantizer.threshold' for layer in (0, 3)}
    statistics = {'1.running_mean', '1.running_var', '1.num_batches_tracked'}
    assert moved(train(), train()) >= ranges | statistics
    mmgdrq.freeze(model)
    before, after = train(), train()
    assert {'0.weight', '1.weight', '3.weight'} <= moved(before, after)
    assert not moved(before, after) & (ranges | statistics)
    mmgdrq.freeze(model, False)
    assert moved(train(), train()) >= ranges | statistics


def test_only_a_quantized_model_is_frozen():
    with pytest.raises(ConfigError, match='freeze: the model is not quantized'):
        mmgdrq.freeze(nn.Linear(2, 2))


def test_a_training_pass_right_after_a_load_is_in_the_stage_of_the_checkpoint():
    source = mmgdrq.quantize(small_net(), stage='reshape')
    source.train()(inputs(1))
    mmgdrq.set_stage(source, 'quantize')
    net = mmgdrq.quantize(small_net(), stage='reshape', follow_checkpoint=True)
    net.load_state_dict(source.state_dict())
    assert mmgdrq.state(net).stage == 'quantize'
    assert {layer.weight_quantizer.mode for layer in quantized_layers(net)} == {QUANTIZE}


def test_a_quantized_model_inside_another_one_keeps_its_state():
    inner = mmgdrq.quantize(small_net())
    outer = nn.Sequential(mmgdrq.Conv2d(3, 3, 1), inner)
    manage_registered(outer)
    outer.train()(inputs(1))
    assert all(q.state is mmgdrq.state(inner) for q in activation_quantizers(inner))
    assert outer[0].activation_quantizer.state is not mmgdrq.state(inner)
