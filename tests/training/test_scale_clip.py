"""Scale-Clip of the weights: after real optimizer steps, and only of quantized layers."""

import warnings

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import nn

import mmgdrq
from mmgdrq.errors import ConfigError
from tests.helpers import reference


def model(group_size=2, rules=()):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(20, 3))
    with torch.no_grad():
        for layer in (net[0], net[2], net[4]):
            layer.weight.view(-1)[::7] *= 30
    rules = [dict(pattern='*', weight=dict(k=2.0)), *rules]
    return mmgdrq.quantize(net, dict(bits=2, group_size=group_size), rules=rules)


def weights(net):
    return {name: p.detach().numpy().copy() for name, p in net.named_parameters()}


@pytest.mark.parametrize('group_size', [1, 2, -1])
def test_projection_equals_the_reference(group_size):
    net = model(group_size)
    before = weights(net)
    mmgdrq.ScaleClip(net)()
    after = weights(net)
    for name in before:
        if name.endswith('bias'):
            assert np.array_equal(after[name], before[name])
        else:
            expected = reference.scale_clip(before[name], 2.0, group_size)
            np.testing.assert_allclose(after[name], expected, rtol=1e-6)
            assert not np.array_equal(after[name], before[name])


def test_skipped_float_and_fixed_layers_stay():
    net = model(rules=[dict(pattern='0', skip=True), dict(pattern='2', weight=dict(bits=32))])
    net[4].weight.requires_grad_(False)
    before = weights(net)
    mmgdrq.ScaleClip(net)()
    after = weights(net)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_it_runs_after_every_step_until_removed():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    handle = mmgdrq.ScaleClip(net).attach(optimizer)
    x = torch.rand(2, 3, 6, 6)
    before = weights(net)
    net.train()(x).sum().backward()
    expected = net[2].weight.detach().numpy() - np.float32(0.01) * net[2].weight.grad.numpy()
    assert all(np.array_equal(before[name], value) for name, value in weights(net).items()), 'no step, no projection'
    optimizer.step()
    projected = reference.scale_clip(expected, 2.0, 2)
    np.testing.assert_allclose(net[2].weight.detach().numpy(), projected, rtol=1e-5, atol=1e-7)
    handle.remove()
    with torch.no_grad():
        net[2].weight.view(-1)[0] = 100.0
    net.zero_grad()
    optimizer.step()
    assert float(net[2].weight.detach().view(-1)[0]) == 100.0


def test_a_step_that_a_scaler_skips_does_not_project():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    mmgdrq.ScaleClip(net).attach(optimizer)
    scaler = torch.amp.GradScaler('cpu')
    before = weights(net)
    scaler.scale(net.train()(torch.rand(2, 3, 6, 6)).sum()).backward()
    net[0].weight.grad[0] = float('inf')
    scaler.step(optimizer)
    scaler.update()
    assert all(np.array_equal(before[name], value) for name, value in weights(net).items())


def test_it_can_be_switched_off():
    net = model()
    clip = mmgdrq.ScaleClip(net)
    clip.enabled = False
    before = weights(net)
    clip()
    assert all(np.array_equal(before[name], value) for name, value in weights(net).items())


def test_no_gradient_is_masked_by_it():
    net = model()
    mmgdrq.ScaleClip(net)()
    net.train()(torch.rand(2, 3, 6, 6)).square().sum().backward()
    assert bool((net[4].weight.grad.abs().sum(0) > 0).any())
    layer = mmgdrq.Linear(6, 2, bias=False, activation=dict(bits=32))
    with torch.no_grad():
        layer.weight.view(-1)[0] = 50.0  # far outside of its range
    layer(torch.ones(1, 6)).sum().backward()
    assert torch.equal(layer.weight.grad, torch.ones(2, 6))


@pytest.mark.parametrize('enabled', [False, True])
def test_a_step_that_a_scaler_makes_projects(enabled):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    mmgdrq.ScaleClip(net).attach(optimizer)
    scaler = torch.amp.GradScaler('cpu', enabled=enabled)
    before = weights(net)
    scaler.scale(net.train()(torch.rand(2, 3, 6, 6)).sum()).backward()
    assert all(np.array_equal(before[name], value) for name, value in weights(net).items())
    scaler.step(optimizer)
    scaler.update()
    for name in ('0.weight', '2.weight', '4.weight'):
        np.testing.assert_allclose(weights(net)[name], reference.scale_clip(before[name], 2.0, 2), rtol=1e-6)


def test_accumulated_gradients_project_once():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    calls = []
    clip = mmgdrq.ScaleClip(net)
    clip.attach(optimizer)
    optimizer.register_step_post_hook(lambda *_: calls.append(weights(net)))
    before = weights(net)
    for _ in range(3):
        net.train()(torch.rand(2, 3, 6, 6)).sum().backward()
        assert all(np.array_equal(before[name], value) for name, value in weights(net).items())
    optimizer.step()
    assert len(calls) == 1
    np.testing.assert_allclose(calls[0]['2.weight'], reference.scale_clip(before['2.weight'], 2.0, 2), rtol=1e-6)


@pytest.mark.parametrize('kernels', [False, True])
@pytest.mark.parametrize(
    ('layer', 'sizes'), [(nn.Conv2d, (3, 4, 3)), (nn.ConvTranspose2d, (3, 4, 3)), (nn.MultiheadAttention, (8, 2))]
)
def test_torch_counts_the_projection_as_a_change(layer, sizes, kernels):
    net = mmgdrq.quantize(nn.Sequential(layer(*sizes)))
    mmgdrq.set_execution(net, kernels=kernels)
    versions = {name: p._version for name, p in net.named_parameters() if 'weight' in name}
    mmgdrq.ScaleClip(net)()
    mmgdrq.set_execution(net)
    assert versions
    assert all(p._version > versions[name] for name, p in net.named_parameters() if name in versions)


def test_a_step_that_a_fused_optimizer_skips_does_not_project():
    """A fused optimizer learns on the device, inside of its step, that a GradScaler skips it."""
    net = model()
    optimizer = torch.optim.Adam(net.parameters(), 0.01, fused=True)
    mmgdrq.ScaleClip(net).attach(optimizer)
    scaler = torch.amp.GradScaler('cpu')
    before = weights(net)
    for finite in (False, True):
        scaler.scale(net.train()(torch.rand(2, 3, 6, 6)).sum()).backward()
        if not finite:
            net[0].weight.grad[0] = float('inf')
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        kept = [np.array_equal(before[name], value) for name, value in weights(net).items()]
        assert not any(kept) if finite else all(kept)
    assert np.abs(weights(net)['2.weight']).max() < np.abs(before['2.weight']).max() / 2


def test_every_optimizer_projects_its_own_weights():
    net = model()
    first = torch.optim.SGD(net[0].parameters(), 0.0)
    rest = torch.optim.SGD([*net[2].parameters(), *net[4].parameters()], 0.0)
    clip, before = mmgdrq.ScaleClip(net), weights(net)
    clip.attach(first)
    clip.attach(rest)
    net.train()(torch.rand(2, 3, 6, 6)).sum().backward()
    first.step()
    changed = {name for name, value in weights(net).items() if not np.array_equal(before[name], value)}
    assert changed == {'0.weight'}
    rest.step()
    changed = {name for name, value in weights(net).items() if not np.array_equal(before[name], value)}
    assert changed == {'0.weight', '2.weight', '4.weight'}


def test_an_optimizer_of_copies_projects_all_weights():
    net = model()
    copies = [p.detach().clone().requires_grad_() for p in net.parameters()]
    optimizer = torch.optim.SGD(copies, 0.0)
    mmgdrq.ScaleClip(net).attach(optimizer)
    before = weights(net)
    optimizer.step()
    changed = {name for name, value in weights(net).items() if not np.array_equal(before[name], value)}
    assert changed == {'0.weight', '2.weight', '4.weight'}


# ------------------------------------------------------------------ mistakes


def test_a_float_model():
    with pytest.raises(ConfigError, match=r'ScaleClip: the model is not quantized. Call mmgdrq.quantize'):
        mmgdrq.ScaleClip(nn.Sequential(nn.Linear(2, 2)))


def test_a_model_of_registered_layers():
    mmgdrq.ScaleClip(nn.Sequential(mmgdrq.Linear(2, 2)))()


@pytest.mark.parametrize('make', [lambda optimizer: OptimWrapper(optimizer), lambda optimizer: [optimizer]])
def test_something_else_than_an_optimizer(make):
    net = model()
    optimizer = make(torch.optim.SGD(net.parameters(), 0.1))
    with pytest.raises(ConfigError, match=r'ScaleClip.attach: expected an optimizer of torch, got (OptimW|list)'):
        mmgdrq.ScaleClip(net).attach(optimizer)


LEARNED = dict(range='learned')
RANGES = [dict(weight=LEARNED), dict(activation=LEARNED), dict(weight=LEARNED, activation=LEARNED)]


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.MultiheadAttention(4, 2), nn.Linear(4, 3))


def warnings_of(net, *optimizers) -> list[str]:
    clip = mmgdrq.ScaleClip(net)
    handles = [clip.attach(optimizer) for optimizer in optimizers]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for optimizer in optimizers:
            optimizer.step()
            optimizer.step()
    for handle in handles:
        handle.remove()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize('quant', RANGES)
def test_an_optimizer_that_was_made_before_the_learned_ranges(quant):
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    mmgdrq.quantize(net, **quant)
    (text,) = warnings_of(net, optimizer)
    assert (
        "no optimizer holds the learned ranges of 6 layers whose weights are trained, such as '0', so they never"
        in text
    )
    assert warnings_of(net, torch.optim.SGD(net.parameters(), 0.1)) == [], 'made after them'
    ranges = [p for name, p in net.named_parameters() if 'quantizer' in name]
    optimizer.add_param_group(dict(params=ranges, lr=0.01))
    assert warnings_of(net, optimizer) == []


def test_ranges_that_are_not_learned_need_no_optimizer():
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    mmgdrq.quantize(net)
    assert warnings_of(net, optimizer) == []


def test_ranges_that_were_fixed_on_purpose_are_left_out():
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    mmgdrq.quantize(net, activation=LEARNED)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_('quantizer' not in name)
    assert warnings_of(net, optimizer) == []


def test_an_optimizer_answers_for_the_layers_whose_weights_it_holds():
    net = small()
    before = torch.optim.SGD(net[2].parameters(), 0.1)
    mmgdrq.quantize(net, activation=LEARNED)
    assert warnings_of(net, torch.optim.SGD(net[0].parameters(), 0.1)) == []
    (text,) = warnings_of(net, before)
    assert "of 1 layers whose weights are trained, such as '2'" in text


def test_one_optimizer_may_hold_the_weights_and_another_the_ranges():
    net = mmgdrq.quantize(small(), activation=LEARNED)
    named = list(net.named_parameters())
    weights = torch.optim.SGD([p for name, p in named if 'quantizer' not in name], 0.1)
    ranges = torch.optim.Adam([p for name, p in named if 'quantizer' in name], 0.1)
    assert warnings_of(net, weights, ranges) == warnings_of(net, ranges, weights) == []
    assert len(warnings_of(net, weights)) == 1


class Wrapper(torch.optim.Optimizer):
    """As accelerate's: a subclass that only holds an optimizer."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self):
        self.optimizer.step()


def test_a_wrapper_of_an_optimizer_is_asked_for_what_it_holds():
    net = model()
    wrapper = Wrapper(torch.optim.SGD(net.parameters(), 0.01))
    with pytest.raises(ConfigError, match=r'got Wrapper\. .*accelerate.* attach\(optimizer\.optimizer\)'):
        mmgdrq.ScaleClip(net).attach(wrapper)
    mmgdrq.ScaleClip(net).attach(wrapper.optimizer)


class TwoSteps(torch.optim.Optimizer):
    """As SAM: two steps, neither of which is called ``step``."""

    def __init__(self, params, base):
        super().__init__(params, dict(rho=0.05))
        self.base_optimizer = base

    @torch.no_grad()
    def first_step(self):
        for group in self.param_groups:
            for p in group['params']:
                self.state[p]['old'] = p.clone()
                p.add_(p.grad.sign(), alpha=1e-3)

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group['params']:
                p.copy_(self.state[p]['old'])
        self.base_optimizer.step()


def steps_of_sam(net, optimizer, count=6):
    for _ in range(count):
        for step in (optimizer.first_step, optimizer.second_step):
            net.zero_grad()
            net.train()(torch.rand(2, 3, 6, 6)).square().sum().backward()
            step()


def test_an_optimizer_without_steps_of_that_name_is_reported_once():
    net = model()
    optimizer = TwoSteps(net.parameters(), torch.optim.SGD(net.parameters(), 1e-4))
    mmgdrq.ScaleClip(net).attach(optimizer)
    with pytest.warns(UserWarning, match=r'no step .* was seen.*attach\(optimizer\.base_optimizer\)') as caught:
        steps_of_sam(net, optimizer)
    assert len([w for w in caught if 'no step' in str(w.message)]) == 1


def test_the_optimizer_inside_is_seen_and_so_are_loading_and_accumulation():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        net = model()
        optimizer = TwoSteps(net.parameters(), torch.optim.SGD(net.parameters(), 1e-4))
        mmgdrq.ScaleClip(net).attach(optimizer.base_optimizer)
        steps_of_sam(net, optimizer)
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), 1e-4)
        mmgdrq.ScaleClip(net).attach(optimizer)
        net.train()(torch.rand(2, 3, 6, 6))
        net.load_state_dict(net.state_dict())
        for number in range(12):
            net(torch.rand(2, 3, 6, 6)).sum().backward()
            if number % 6 == 5:
                optimizer.step()
