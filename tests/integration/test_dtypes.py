"""Training in other dtypes than float32."""

import pytest
import torch
from torch import nn

import mmgdrq
from tests.helpers.nets import inputs, ranges, small_net


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
