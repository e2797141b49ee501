"""What OpenMMLab's backbones can be told: frozen stages, BN in eval mode, activation checkpointing."""

import pytest
import torch
from mmdet.models.backbones import ResNet
from torch import nn

import mmgdrq


def detector(**backbone) -> nn.ModuleDict:
    torch.manual_seed(0)
    net = nn.ModuleDict(
        dict(
            backbone=ResNet(18, base_channels=8, stem_channels=8, out_indices=(3,), **backbone),
            neck=nn.Conv2d(64, 8, 1),
            bbox_head=nn.ModuleDict(dict(fc_cls=nn.Conv2d(8, 4, 1))),
        )
    )
    net.forward = lambda x: net['bbox_head']['fc_cls'](net['neck'](net['backbone'](x)[0]))
    return mmgdrq.quantize(net).train()


def step(net: nn.Module, images: torch.Tensor, lr: float = 0.1) -> torch.Tensor:
    """One step of training with Scale-Clip; the loss before it."""
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr)
    mmgdrq.ScaleClip(net).attach(optimizer)
    loss = net(images).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def thresholds(net: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items() if key.endswith('.threshold')}


def test_frozen_stages_stay_what_they_are():
    net = detector(frozen_stages=1)
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad and p.dim() > 1}
    assert {name.split('.')[1] for name in frozen} == {'conv1', 'layer1'}
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():  # far outside of what Scale-Clip would leave
        before['backbone.layer1.0.conv1.weight'][0, 0, 0, 0] = 9.0
        net['backbone'].layer1[0].conv1.weight[0, 0, 0, 0] = 9.0
    step(net, images())
    after = dict(net.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in frozen), 'neither the optimizer nor Scale-Clip'
    assert not torch.equal(after['backbone.layer2.0.conv1.weight'], before['backbone.layer2.0.conv1.weight'])
    plan = {row.name: row for row in mmgdrq.state(net).plan}
    assert plan['backbone.layer1.0.conv1'].reason == 'frozen: quantized, not trained'
    assert plan['backbone.layer2.0.conv1'].weight.bits == 2
    assert all(float(value) > 0 for value in thresholds(net).values()), 'frozen layers have ranges, too'


@pytest.mark.parametrize('norm_eval', [True, False])
def test_norm_eval_is_respected(norm_eval):
    net = detector(norm_eval=norm_eval, frozen_stages=-1)
    bn = net['backbone'].layer2[0].bn1
    before = bn.running_mean.clone()
    step(net, images())
    assert torch.equal(bn.running_mean, before) is norm_eval
    assert not bn.weight.detach().eq(1).all(), 'its parameters are trained in either case'


def test_with_cp_computes_the_same():
    plain, again = detector(with_cp=False), detector(with_cp=True)
    x = images().requires_grad_()  # mmdet checkpoints only what needs a gradient
    for _ in range(2):
        first, second = step(plain, x), step(again, x)
        torch.testing.assert_close(first, second)
    for (key, expected), found in zip(thresholds(plain).items(), thresholds(again).values()):
        torch.testing.assert_close(found, expected, msg=f'{key}: one update per iteration')
    for (name, expected), found in zip(plain.named_parameters(), again.parameters()):
        torch.testing.assert_close(found, expected, msg=name)
