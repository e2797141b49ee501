"""What the step benchmark compares: models, and the ways to train them quantized."""

import tempfile
from pathlib import Path
from typing import Callable

import torch
import torchvision
from torch import Tensor, nn

import mmgdrq
from mmgdrq.quantized_model.execution import set_execution

CLASSIFIERS = ('resnet18', 'resnet50')
DETECTORS = {
    'faster_rcnn_r50': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'retinanet_r50': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'retinanet_r18': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
}


class Classifier(nn.Module):
    """A torchvision ResNet and its loss."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = getattr(torchvision.models, name)()

    def batch(self, count: int, size: int, device: str) -> tuple:
        return torch.randn(count, 3, size, size, device=device), torch.randint(1000, (count,), device=device)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.net(images).float(), labels)

    def predict(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.net(images)


class Detector(nn.Module):
    """A detector of mmdet on made-up boxes."""

    def __init__(self, name: str) -> None:
        from mmdet.utils import register_all_modules
        from mmengine.registry import MODELS

        super().__init__()
        register_all_modules()
        config = _config(DETECTORS[name])
        config.backbone.init_cfg = None
        self.net = MODELS.build(config)
        self.net.init_weights()

    def batch(self, count: int, size: int, device: str) -> tuple:
        return torch.randn(count, 3, size, size, device=device), [_boxes(size, device) for _ in range(count)]

    def loss(self, images: Tensor, samples: list) -> Tensor:
        losses = self.net(images, samples, mode='loss')
        return self.net.parse_losses(losses)[0]

    def predict(self, images: Tensor, samples: list):
        return self.net.extract_feat(images)


def _config(name: str):
    from mmengine.config import Config

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'config.py')
        file.write_text(f"_base_ = '{name}'", encoding='utf-8')
        return Config.fromfile(str(file)).model


def _boxes(size: int, device: str):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    shape = (size, size)
    meta = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), shape)
    sample = DetDataSample(metainfo=dict(meta, scale_factor=(1.0, 1.0)))
    corners = torch.rand(8, 2, device=device) * size / 2
    sides = torch.rand(8, 2, device=device) * size / 3 + 16
    sample.gt_instances = InstanceData(
        bboxes=torch.cat([corners, corners + sides], 1), labels=torch.randint(80, (8,), device=device)
    )
    return sample


def make_model(name: str) -> nn.Module:
    """The float model, with the same weights every time."""
    torch.manual_seed(0)
    return Classifier(name) if name in CLASSIFIERS else Detector(name)


def _gdrq(stage: str = 'quantize', weight: str = 'mean', activation: str = 'lehmer', **execution) -> Callable:
    def build(model: nn.Module, batch: tuple) -> nn.Module:
        mmgdrq.quantize(model.net, dict(bits=2, range=weight), dict(bits=4, range=activation), stage=stage)
        set_execution(model.net, **execution)
        return model

    return build


def _frozen(model: nn.Module, batch: tuple) -> nn.Module:
    model = _gdrq()(model, batch)
    model.train()
    model.loss(*batch)
    mmgdrq.freeze(model.net)
    return model


def _torch_ao(model: nn.Module, batch: tuple) -> nn.Module:
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    model.net = prepare_qat_fx(model.net.train(), get_default_qat_qconfig_mapping('x86'), (batch[0],))
    return model


def _brevitas(model: nn.Module, batch: tuple) -> nn.Module:
    from brevitas import nn as qnn
    from brevitas.quant import Int8ActPerTensorFloat, Uint8ActPerTensorFloat

    layers = [(n, m) for n, m in model.net.named_modules() if type(m) in (nn.Conv2d, nn.Linear)]
    for number, (name, old) in enumerate(layers):
        outer = number in (0, len(layers) - 1)
        inputs = Int8ActPerTensorFloat if number == 0 else Uint8ActPerTensorFloat
        kwargs = dict(
            bias=old.bias is not None,
            weight_bit_width=8 if outer else 2,
            input_quant=inputs,
            input_bit_width=8 if outer else 4,
        )
        if isinstance(old, nn.Linear):
            new = qnn.QuantLinear(old.in_features, old.out_features, **kwargs)
        else:
            shape = (old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation)
            new = qnn.QuantConv2d(*shape, groups=old.groups, **kwargs)
        new.weight = old.weight
        new.bias = old.bias
        parent, _, last = name.rpartition('.')
        setattr(model.net.get_submodule(parent), last, new)
    return model


CANDIDATES: dict[str, Callable] = {
    'float': lambda model, batch: model,
    'float, lean ReLU': lambda model, batch: (set_execution(model.net, lean_relu=True), model)[1],
    'mmgdrq': _gdrq(),
    'mmgdrq, plain ReLU': _gdrq(lean_relu=False),
    'mmgdrq, no codes': _gdrq(codes=False),
    'mmgdrq, no cache': _gdrq(cache=False),
    'mmgdrq, no kernels': _gdrq(kernels=False),
    'mmgdrq, none of these': _gdrq(codes=False, cache=False, kernels=False, lean_relu=False),
    'mmgdrq, frozen ranges': _frozen,
    'mmgdrq, stage reshape': _gdrq('reshape'),
    'mmgdrq, stage quantize_weight': _gdrq('quantize_weight'),
    **{f'mmgdrq, weight {rule}': _gdrq(weight=rule) for rule in ('search', 'learned', 'minmax')},
    **{f'mmgdrq, activation {rule}': _gdrq(activation=rule) for rule in ('mean', 'search', 'learned', 'minmax')},
    'torch.ao FX QAT (W8A8)': _torch_ao,
    'brevitas (W2A4)': _brevitas,
}
"""Name -> builder; all mmgdrq ones are W2A4 with 8 bits at both ends."""

MAIN = ('float', 'mmgdrq', 'mmgdrq, plain ReLU', 'mmgdrq, none of these', 'torch.ao FX QAT (W8A8)', 'brevitas (W2A4)')
QUICK = ('float', 'mmgdrq', 'mmgdrq, plain ReLU')
