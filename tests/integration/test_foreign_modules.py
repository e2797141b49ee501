"""Models of other libraries, without weights: all of their layers are quantized, trained and folded rightly."""

import copy

import pytest
import torch
from torch import nn

import mmgdrq
from mmgdrq.deploy import compare_blocks, load_folded, plug_engine
from mmgdrq.deploy.deployment import deploy

timm = pytest.importorskip('timm', reason='timm is not installed')
torchvision = pytest.importorskip('torchvision', reason='torchvision is not installed')

TIMM = (
    'convnext_atto',  # depthwise 7x7 and LayerNorm
    'edgenext_xx_small',  # cross-covariance attention
    'efficientnet_lite0',  # BatchNormAct2d
    'efficientvit_b0',  # linear attention with float32 inside
    'ghostnet_050',
    'lcnet_035',  # squeeze-excitation, and timm's own Linear
    'mixnet_s',  # MixedConv2d with Conv2dSame
    'mobilenetv3_small_050',
    'nf_regnet_b0',  # ScaledStdConv2d
    'regnetx_002',
    'repvgg_a0',
    'resnetv2_50',  # BN and activation before the convolution
    'tf_efficientnetv2_b0',  # Conv2dSame
    'vit_tiny_patch16_224',
)
TORCHVISION = ('efficientnet_b0', 'mobilenet_v3_small', 'regnet_y_400mf', 'shufflenet_v2_x0_5', 'squeezenet1_1')


def timm_model(name: str) -> nn.Module:
    options = dict(img_size=32) if name.startswith('vit') else {}
    return timm.create_model(name, pretrained=False, num_classes=10, **options)


def torchvision_model(name: str) -> nn.Module:
    return getattr(torchvision.models, name)(num_classes=10)


MODELS = [pytest.param(timm_model, name, id=f'timm-{name}') for name in TIMM]
MODELS += [pytest.param(torchvision_model, name, id=f'torchvision-{name}') for name in TORCHVISION]


def with_random_norms(model: nn.Module) -> nn.Module:
    """BN as a training leaves it: some of its scales are negative."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return model


def trained(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """A model after two training steps, in evaluation mode."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(('build', 'name'), MODELS)
def test_it_is_quantized_trained_and_folded(build, name):
    torch.manual_seed(0)
    model, x = with_random_norms(build(name)), torch.randn(4, 3, 32, 32)
    plan = mmgdrq.plan(model, weight=dict(bits=4), activation=dict(bits=8))
    assert [(row.name, row.reason) for row in plan if not row.quantized] == []
    mmgdrq.quantize(model, weight=dict(bits=4), activation=dict(bits=8))
    trained(model, x)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    folded = mmgdrq.fold(model, example=x)
    errors = compare_blocks(model, folded, lambda target: target(x))
    assert len(errors) == len(plan.quantized)
    assert max(errors.values()) < 1e-4


class WithTimmBackbone(nn.Module):
    """The dense part of a classifier around a backbone of timm, as OpenMMLab's TIMMBackbone has it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = timm.create_model(name, features_only=True, pretrained=False)
        self.head = nn.Linear(self.backbone.feature_info.channels()[-1], 5)

    def extract_feat(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x)[-1].mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.extract_feat(x))


@pytest.mark.parametrize('name', ['efficientnet_lite0', 'regnetx_002', 'tf_mobilenetv3_small_minimal_100'])
@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_a_norm_with_an_activation_reaches_the_engine(name, engine, tmp_path):
    """timm's BatchNormAct2d is a BatchNorm2d that does more; a graph without its activation is off by all of it."""
    pytest.importorskip('onnx', reason='onnx is not installed')
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    torch.manual_seed(0)
    model, x = with_random_norms(WithTimmBackbone(name)), torch.randn(2, 3, 32, 32)
    trained(mmgdrq.quantize(model, weight=dict(bits=8), activation=dict(bits=8)), x)
    with torch.no_grad():
        expected = model(x)
        deploy(model, [x], lambda target, batch: target(batch), str(tmp_path / 'out'), [engine], rounds=0)
        found = plug_engine(load_folded(copy.deepcopy(model), tmp_path / 'out'), tmp_path / 'out', engine)(x)
    assert (found - expected).norm() < 0.1 * expected.norm()
