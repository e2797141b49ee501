"""Statistics of distributions, against closed forms and scipy."""

import numpy as np
import pytest
import scipy.stats
import torch
from mmcv.cnn import ConvWS2d
from torch import nn

import mmgdrq
from mmgdrq.analysis import analyze, format_table, gap_to_uniform
from mmgdrq.analysis.plots import plot_weights, relative_weight


@pytest.mark.parametrize('draw', ['laplace', 'normal', 'uniform'])
def test_gap_agrees_with_scipy(draw):
    x = getattr(np.random.default_rng(0), draw)(-1.0 if draw == 'uniform' else 0.0, 1.0, size=5000)
    expected = scipy.stats.kstest(np.abs(x), 'uniform', args=(0, 2 * np.abs(x).mean())).statistic
    assert gap_to_uniform(torch.from_numpy(x)).item() == pytest.approx(expected, abs=1e-5)


def test_gap_orders_the_distributions_as_the_quantized_loss_does():
    rng = np.random.default_rng(1)
    laplace, normal, uniform = (rng.laplace(size=20000), rng.normal(size=20000), rng.uniform(-1, 1, size=20000))
    rows = torch.from_numpy(np.stack([laplace, normal, uniform]))
    gaps = gap_to_uniform(rows)
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.02


def test_gap_of_zeros_is_zero():
    assert gap_to_uniform(torch.zeros(2, 5)).tolist() == [0.0, 0.0]
    assert gap_to_uniform(torch.zeros(2, 0)).tolist() == [0.0, 0.0]


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(160, 4))
    return mmgdrq.quantize(net)


def test_projection_lowers_the_loss_of_heavy_tailed_weights(model):
    projection = mmgdrq.ScaleClip(model)
    with torch.no_grad():
        for layer in (model[0], model[2], model[5]):
            layer.weight.copy_(torch.distributions.Laplace(0.0, 1.0).sample(layer.weight.shape))
        heavy = analyze(model)
        for _ in range(20):
            projection()
    after = analyze(model)
    assert len(heavy) == 3
    assert after[1].weight_loss < heavy[1].weight_loss
    assert all(r.weight_best <= r.weight_loss + 1e-4 for r in after)


def test_inputs_are_seen_and_the_model_is_left_alone(model):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    mmgdrq.set_stage(model, 'float')
    state['gdrq_stage'] = model.gdrq_stage.clone()
    reports = analyze(model.eval(), lambda m: m(torch.randn(2, 3, 8, 8)))
    assert all(r.input_loss is not None and 0 < r.input_best <= r.input_loss + 1e-4 for r in reports)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert not any(m._forward_pre_hooks for m in model if hasattr(m, 'weight_quantizer'))


def test_table_has_a_line_for_every_layer_and_the_mean(model):
    lines = format_table(analyze(model)).splitlines()
    assert len(lines) == 2 + 3 + 1 + 1
    assert lines[-2].startswith('mean')
    assert 'Lower is better' in lines[-1]


def test_picture(model, tmp_path):
    plot_weights({'before': model, 'after': model}, tmp_path / 'weights.png')
    assert (tmp_path / 'weights.png').stat().st_size > 1000
    assert relative_weight(model[2]).abs().mean().item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize('bits', [8, 32])
def test_picture_of_a_model_without_low_bits(bits, tmp_path):
    """All layers of 8 bits are candidates; without a quantized weight there is no picture."""
    model = mmgdrq.quantize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)), dict(bits=bits), dict(bits=8))
    plot_weights({'weights': model}, tmp_path / 'weights.png')
    assert [file.name for file in tmp_path.iterdir()] == (['weights.png'] if bits == 8 else [])


def error_of(quantizer, x):
    """Relative error of what a layer computes with."""
    return ((quantizer(x) - x).abs().sum() / x.abs().sum()).item()


def quantized(layer, x, weight=None, activation=None):
    """The layer between two others, after two training iterations."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), layer, nn.Conv2d(8, 2, 1))
    mmgdrq.quantize(net, {'bits': 2, 'group_size': -1, **(weight or {})}, activation)
    for _ in range(2):
        net.train()(x)
    return net.eval(), net[2]


X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('kind', ['transposed', 'standardized'])
def test_it_is_what_the_layer_quantizes_that_counts(kind):
    layer = nn.ConvTranspose2d(8, 8, 2, stride=2) if kind == 'transposed' else ConvWS2d(8, 8, 3)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-2, 2, 8)[None, :, None, None]).add_(0.1)
    net, layer = quantized(layer, X, dict(group_size=1))
    report = analyze(net)[1]
    filters = layer.filters().detach()
    rows, error = filters.flatten(1).abs(), (layer.weight_quantizer(filters) - filters).flatten(1).abs()
    assert report.weight_loss == pytest.approx((error.sum(1) / rows.sum(1)).mean().item(), rel=1e-4)
    assert report.weight_gap == pytest.approx(gap_to_uniform(rows).mean().item())
    assert relative_weight(layer).abs().max().item() == pytest.approx((rows.amax(1) / rows.mean(1)).max().item())


@pytest.mark.parametrize('rule', ['learned', 'search'])
def test_a_range_of_its_own_counts(rule):
    net, layer = quantized(nn.Conv2d(8, 8, 3), X, dict(range=rule))
    with torch.no_grad():
        layer.weight_quantizer.alpha.mul_(3)
    before, quantizer = analyze(net)[1], layer.weight_quantizer
    quantizer.train().eval()
    assert before.weight_loss == pytest.approx(error_of(quantizer, layer.weight.detach()), rel=1e-4)
    assert before.weight_best < before.weight_loss


def test_a_report_sets_no_range():
    net = mmgdrq.quantize(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)), dict(range='learned')
    )
    assert analyze(net)[1].weight_loss > 0
    assert not net[1].weight_quantizer.is_ready()


def test_a_smaller_last_group_counts_as_it_is():
    torch.manual_seed(0)
    weights = torch.randn(5, 3, 3, 3)

    def report(filters, group_size):
        net = nn.Sequential(nn.Conv2d(3, len(filters), 3), nn.Conv2d(len(filters), 2, 1))
        net[0].weight.data.copy_(filters)
        rules = [dict(pattern='0', weight=dict(bits=2, group_size=group_size))]
        return analyze(mmgdrq.quantize(net, rules=rules))[0]

    both, first, last = report(weights, 4), report(weights[:4], -1), report(weights[4:], -1)
    for name in ('weight_loss', 'weight_best', 'weight_gap'):
        mean = (getattr(first, name) + getattr(last, name)) / 2
        assert getattr(both, name) == pytest.approx(mean, rel=1e-5), name


def test_the_sign_of_the_grid_is_that_of_the_quantizer():
    """A signed grid for inputs of a ReLU leaves half of its codes unused."""
    net, layer = quantized(nn.Conv2d(8, 8, 3), X, activation=dict(bits=4, signed=True))
    seen = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    report = analyze(net, lambda model: model(X))[1]
    handle.remove()
    assert report.input_loss == pytest.approx(error_of(layer.activation_quantizer, seen[0]), rel=1e-4)


def test_an_input_of_zeros_has_no_figures():
    net, _ = quantized(nn.Conv2d(8, 8, 3), X)
    net[0].bias.data.fill_(-100)
    report = analyze(net, lambda model: model(X))[1]
    assert report.input_loss is report.input_best is report.input_gap is None
    assert report.weight_loss is not None


def test_no_shape_hides_the_elements_of_an_input(monkeypatch):
    monkeypatch.setattr('mmgdrq.analysis.report.SAMPLE', 500)
    net = mmgdrq.quantize(nn.Sequential(nn.Linear(11, 4)), activation=dict(bits=4))
    x = torch.zeros(1530, 11)  # of 500 elements at equal distances each is in the first column
    x[:, 5] = torch.rand(1530) + 0.5
    report = analyze(net, lambda model: model(x))[0]
    assert report.input_loss is not None
