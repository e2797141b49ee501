"""Statistics of distributions, against closed forms and scipy."""

import numpy as np
import pytest
import scipy.stats
import torch
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
    assert len(lines) == 2 + 3 + 1
    assert lines[-1].startswith('mean')


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
