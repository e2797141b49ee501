"""Two lines quantize configs of the zoos that this project does not ship."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch.utils.data import Dataset

import mmgdrq
from mmgdrq.planning.weight_layers import weight_layers
from tests.helpers.toy import log_of

SIZE = 64


def detection(size: int = SIZE) -> DetDataSample:
    meta = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), (size, size))
    sample = DetDataSample(metainfo=dict(meta, scale_factor=(1.0, 1.0)))
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    mask = np.zeros((1, size, size), dtype=np.uint8)
    mask[:, 8:40, 8:40] = 1
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([1]), masks=BitmapMasks(mask, height=size, width=size)
    )
    return sample


def segmentation(size: int = SIZE) -> SegDataSample:
    sample = SegDataSample(metainfo=dict(img_shape=(size, size), ori_shape=(size, size)))
    sample.gt_sem_seg = PixelData(data=torch.ones(1, size, size, dtype=torch.long))
    return sample


def classification(size: int = SIZE) -> DataSample:
    return DataSample().set_gt_label(1)


SAMPLES = dict(mmdet=detection, mmseg=segmentation, mmpretrain=classification)


@DATASETS.register_module(force=True)
class MadeUpData(Dataset):
    """Two random images with the annotation that a toolbox of OpenMMLab wants."""

    def __init__(self, toolbox: str) -> None:
        self.toolbox = toolbox

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        return dict(inputs=image, data_samples=SAMPLES[self.toolbox]())


CONFIGS = {
    'retinanet': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'yolox': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'pspnet': 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'resnet': 'mmpretrain::resnet/resnet18_8xb32_in1k.py',
}

TWO_LINES = """
custom_imports = dict(imports=['mmgdrq'], allow_failed_imports=False)
custom_hooks = [dict(type='mmgdrq.GDRQHook', weight=dict(bits=2), activation=dict(bits=4))]
"""


def small(cfg: Config, toolbox: str, work_dir: Path) -> Config:
    """One iteration on made-up data, without downloads."""
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f'zoo_{work_dir.name}'
    cfg.train_dataloader = dict(
        dataset=dict(type='mmengine.MadeUpData', toolbox=toolbox),
        sampler=dict(type='DefaultSampler', shuffle=False),
        batch_size=2,
        num_workers=0,
    )
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=1)
    for split in ('val', 'test'):
        for key in ('dataloader', 'cfg', 'evaluator'):
            cfg[f'{split}_{key}'] = None
    cfg.param_scheduler = None
    cfg.default_hooks.pop('visualization', None)
    if 'pretrained' in cfg.model:
        cfg.model.pretrained = None
    cfg.model.backbone.init_cfg = None
    for head in ('decode_head', 'auxiliary_head'):
        if head in cfg.model:
            cfg.model[head].norm_cfg = dict(type='BN')
    if toolbox == 'mmseg':
        cfg.model.backbone.norm_cfg = dict(type='BN')
        cfg.model.data_preprocessor.size = (SIZE, SIZE)
    return cfg


@pytest.mark.parametrize('name', CONFIGS)
def test_two_lines_quantize_a_config(tmp_path, name):
    base = CONFIGS[name]
    toolbox = base.split(':')[0]
    file = tmp_path / f'{name}.py'
    file.write_text(f"_base_ = '{base}'{TWO_LINES}")
    runner = Runner.from_cfg(small(Config.fromfile(str(file)), toolbox, tmp_path))
    names = set(weight_layers(runner.model))
    runner.train()

    model, plan = runner.model, mmgdrq.state(runner.model).plan
    assert {row.name for row in plan} == names
    assert {row.name for row in plan.quantized} == names, 'ordinary CNNs are quantized throughout'
    log = log_of(tmp_path)
    for row in plan:
        assert f'\n{row.name} ' in log

    bits = {row.name: row.weight.bits for row in plan}
    assert set(bits.values()) == {2, 8}
    assert sum(value == 2 for value in bits.values()) > 0.7 * len(bits)
    assert bits[next(iter(bits))] == 8, 'reads the image'

    modules = dict(model.named_modules())
    for row in plan:
        layer = modules[row.name]
        threshold = float(layer.activation_quantizer.threshold)
        assert threshold > 0, f'{row.name} has no range'
        assert torch.isfinite(layer.weight).all()
        filters = layer.weight_quantizer(layer.weight).detach().flatten(1)
        assert len(filters[0].unique()) <= 2**row.weight.bits
