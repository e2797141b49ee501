"""mmgdrq.Quantized and the registered layers, in models of mmdet and under runners."""

import copy

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.models import FasterRCNN
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import FlexibleRunner
from mmengine.structures import InstanceData

import mmgdrq
from mmgdrq import quantize
from mmgdrq.errors import ConfigError
from mmgdrq.layers.walk import is_quantized_model
from tests.helpers.toy import Recorder, ToyModel, thresholds, toy_config, toy_runner

SIZE = 64


def detector_config(tmp_path) -> Config:
    """A narrow Faster R-CNN, quantized by four keys, as a user would write it."""
    path = tmp_path / 'detector.py'
    path.write_text(
        f"""
_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'
custom_imports = dict(imports=['mmgdrq'], allow_failed_imports=False)
default_scope = 'mmdet'
norm = dict(type='BN', requires_grad=True)
model = dict(
    type='mmgdrq.Quantized',
    base_type='FasterRCNN',
    quant=dict(weight=dict(bits=2), activation=dict(bits=4)),
    backbone=dict(depth=18, base_channels=8, norm_cfg=norm, norm_eval=False, frozen_stages=-1,
                  init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=3)),
    test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=20)))
test_dataloader = dict(dataset=dict(type='CocoDataset', pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=({SIZE}, {SIZE}), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                                          'scale_factor'))]))
"""
    )
    return Config.fromfile(str(path))


def batch() -> dict:
    """Two images with one object each."""
    generator = torch.Generator().manual_seed(3)
    samples = []
    for _ in range(2):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(SIZE, SIZE),
                ori_shape=(SIZE, SIZE),
                pad_shape=(SIZE, SIZE),
                batch_input_shape=(SIZE, SIZE),
                scale_factor=(1.0, 1.0),
            )
        )
        boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1]))
        samples.append(sample)
    images = [torch.randint(0, 256, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8) for _ in range(2)]
    return dict(inputs=images, data_samples=samples)


def one_step(model) -> dict:
    """One training step; returns the losses."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    data = model.data_preprocessor(batch(), training=True)
    losses = model(**data, mode='loss')
    total, logged = model.parse_losses(losses)
    total.backward()
    optimizer.step()
    return {key: float(value) for key, value in logged.items()}


@pytest.fixture
def detector(tmp_path):
    """Config and model, trained for a step so that it has ranges."""
    register_all_modules()
    torch.manual_seed(0)
    config = detector_config(tmp_path)
    model = MMDET_MODELS.build(copy.deepcopy(config.model))
    model.init_weights()
    one_step(model)
    return config, model.eval()


def test_result_is_the_base_class_itself(detector):
    _, model = detector
    assert type(model) is FasterRCNN
    assert len(mmgdrq.state(model).plan) == len(mmgdrq.state(model).plan.quantized) > 25
    bits = {row.name: row.weight.bits for row in mmgdrq.state(model).plan}
    assert bits['backbone.conv1'] == 8
    assert bits['backbone.layer3.0.conv1'] == 2
    assert bits['roi_head.bbox_head.fc_cls'] == bits['rpn_head.rpn_reg'] == 8
    assert all(value > 0 for value in thresholds(model).values()), 'every layer saw its input'


def test_init_detector_gives_the_same_boxes(detector, tmp_path):
    config, model = detector
    path = tmp_path / 'checkpoint.pth'
    meta = dict(dataset_meta=dict(classes=('a', 'b', 'c')))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    loaded = init_detector(config, str(path), device='cpu')
    assert type(loaded) is FasterRCNN
    assert is_quantized_model(loaded)

    image = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    model.cfg = loaded.cfg
    wanted = inference_detector(model, image).pred_instances
    found = inference_detector(loaded, image).pred_instances
    assert len(wanted) > 0
    assert torch.equal(found.bboxes, wanted.bboxes)
    assert torch.equal(found.scores, wanted.scores)
    mmgdrq.set_stage(loaded, 'float')
    unrounded = inference_detector(loaded, image).pred_instances
    assert not torch.equal(unrounded.scores[:1], wanted.scores[:1]), 'the boxes above are quantized'


def test_paramwise_groups_equal_those_of_the_float_model(tmp_path):
    register_all_modules()
    config = detector_config(tmp_path)
    wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.1, weight_decay=1e-4),
        paramwise_cfg=dict(
            norm_decay_mult=0.0,
            bias_lr_mult=2.0,
            bias_decay_mult=0.0,
            dwconv_decay_mult=0.5,
            custom_keys={'backbone': dict(lr_mult=0.1)},
        ),
    )

    def groups(model) -> list:
        names = {id(p): name for name, p in model.named_parameters()}
        optimizer = build_optim_wrapper(model, copy.deepcopy(wrapper)).optimizer
        return [
            ([names[id(p)] for p in group['params']], group['lr'], group['weight_decay'])
            for group in optimizer.param_groups
        ]

    quantized = MMDET_MODELS.build(copy.deepcopy(config.model))
    floating = copy.deepcopy(config.model)
    floating.type = floating.pop('base_type')
    floating.pop('quant')
    assert groups(quantized) == groups(MMDET_MODELS.build(floating))


def test_conv_cfg_of_a_backbone():
    register_all_modules()
    layer = dict(type='mmgdrq.Conv2d', weight=dict(bits=2), activation=dict(bits=4))
    backbone = MMDET_MODELS.build(
        dict(
            type='mmdet.ResNet',
            depth=18,
            base_channels=8,
            conv_cfg=layer,
            norm_cfg=dict(type='BN'),
            zero_init_residual=False,
        )
    )
    convs = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    assert {type(m) for m in convs} == {mmgdrq.Conv2d}
    assert {m.weight_quantizer.spec.bits for m in convs} == {2}
    backbone.init_weights()
    backbone.train()
    sum(out.square().mean() for out in backbone(torch.rand(2, 3, 32, 32))).backward()
    conv = backbone.layer2[0].conv1
    assert conv.weight.grad.abs().sum() > 0
    assert float(conv.activation_quantizer.threshold) > 0
    filters = conv.weight_quantizer(conv.weight).flatten(1)
    assert all(len(row.unique()) <= 4 for row in filters)


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ('model', 'words'),
    [
        (dict(base_type='ToyModel', quant=dict(weigth=dict(bits=2))), ("'weigth'", "'weight'")),
        (dict(base_type='ToyModel', quant=dict(weight=dict(bits=9))), ('weight', 'bits=9')),
        (dict(base_type='ToyModel', quant=dict(stages=dict(reshap=1))), ("'reshap'", "'reshape'")),
        (dict(base_type='ToyModel', quant=dict(rules=[dict(pattern='x', skip=True)])), ('rules',)),
        (dict(base_type=dict(type='ToyModel')), ('base_type',)),
        (dict(base_type='mmgdrq.Quantized', quant={}), ('base_type',)),
        (dict(base_type='ToyModell'), ('ToyModell',)),
        (dict(base_type='ToyModel', chanels=3), ('chanels',)),
    ],
)
def test_wrong_config(model, words):
    with pytest.raises((ConfigError, KeyError, TypeError)) as caught:
        MODELS.build(dict(type='mmgdrq.Quantized', **model))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ('model', 'words'),
    [
        (dict(), r"model\.base_type: expected .* such as 'FasterRCNN', or its class, got None"),
        (dict(base_type='ToyModel', quant=2), r'model\.quant: expected a dict'),
        (dict(base_type='ToyModel', stages=dict(quantize=1)), r'model\.stages: belongs into model\.quant'),
        (dict(base_type='ToyModel', weight=dict(bits=2), quant=dict()), r'model\.weight: belongs into model\.quant'),
        (dict(base_type='ToyModel', rules=[]), r'model\.rules: belongs into model\.quant: quant=dict\(rules=\.\.\.\)'),
    ],
)
def test_misplaced_and_missing_keys(model, words):
    with pytest.raises(ConfigError, match=words):
        MODELS.build(dict(type='mmgdrq.Quantized', **model))


@MODELS.register_module()
class StagedModel(ToyModel):
    """A float model with a key of its own that quant has as well."""

    def __init__(self, stages, **settings):
        super().__init__(**settings)
        self.stages = stages


def test_a_model_keeps_its_own_keys():
    model = MODELS.build(dict(type='mmgdrq.Quantized', base_type='StagedModel', stages=4))
    assert model.stages == 4
    with pytest.raises(TypeError, match='chanels'):
        MODELS.build(dict(type='mmgdrq.Quantized', base_type='StagedModel', stages=4, chanels=3))


@MODELS.register_module()
class WithPart(ToyModel):
    def __init__(self, part):
        super().__init__()
        self.part = MODELS.build(part)


def test_a_wrong_key_of_a_part_is_not_taken_for_one_of_the_model():
    part = dict(type='ToyModel', activation='relu')
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'activation'"):
        MODELS.build(dict(type='mmgdrq.Quantized', base_type='WithPart', part=part))


def test_quantizing_twice_is_an_error():
    model = MODELS.build(dict(type='mmgdrq.Quantized', base_type='ToyModel'))
    with pytest.raises(ConfigError, match='already'):
        quantize(model)


# ------------------------------------------------------------------ runners


def toy(**quant) -> dict:
    return dict(type='mmgdrq.Quantized', base_type='ToyModel', quant=quant)


def test_learned_ranges_are_trained(tmp_path):
    learned = dict(weight=dict(bits=2, range='learned'), activation=dict(bits=4, range='learned'))

    def look(runner):
        quantizer = runner.model.conv2.weight_quantizer
        return quantizer.alpha.detach().clone(), thresholds(runner.model)['conv2']

    runner = toy_runner(tmp_path, 2, None, look, model=toy(**learned))
    runner.train()
    names = {id(p): name for name, p in runner.model.named_parameters()}
    held = {names[id(p)] for g in runner.optim_wrapper.optimizer.param_groups for p in g['params']}
    assert held == set(names.values())
    assert 'conv2.weight_quantizer.alpha' in held
    assert 'conv2.activation_quantizer.threshold' in held
    (alpha, threshold), (last_alpha, last_threshold) = runner.recorder.seen[0], look(runner)
    assert (last_alpha != alpha).all()
    assert (last_alpha > 0).all()
    assert last_threshold != threshold


def test_learned_ranges_survive_a_checkpoint(tmp_path):
    learned = dict(weight=dict(range='learned'), activation=dict(range='learned'))
    whole = toy_runner(tmp_path / 'a', 2, None, model=toy(**learned))
    whole.train()
    path = str(tmp_path / 'a/epoch_1.pth')
    again = toy_runner(tmp_path / 'b', 2, None, model=toy(**learned), load_from=path, resume=True)
    again.train()
    assert again.recorder.losses == whole.recorder.losses[3:]


def test_builder_trains_like_the_hook(tmp_path):
    hooked = toy_runner(tmp_path / 'a', 2, dict(weight=dict(bits=2), scale_clip=False))
    hooked.train()
    built = toy_runner(tmp_path / 'b', 2, None, model=toy(weight=dict(bits=2)))
    assert type(built.model) is ToyModel
    built.train()
    assert built.recorder.losses == hooked.recorder.losses


def test_flexible_runner(tmp_path):
    config = toy_config(
        tmp_path,
        1,
        dict(stages=dict(reshape=0, quantize=2, by_epoch=False)),
        model=toy(weight=dict(bits=2)),
        strategy=dict(type='SingleDeviceStrategy'),
        env_cfg=dict(),
    )
    runner = FlexibleRunner.from_cfg(config)
    recorder = Recorder(lambda r: mmgdrq.get_stage(r.model))
    runner.register_hook(recorder)
    runner.train()
    assert recorder.seen == ['reshape', 'reshape', 'quantize']
    assert np.isfinite(recorder.losses).all()
    assert all(value > 0 for value in thresholds(runner.model).values())


# ------------------------------------------------------------------ stages need somebody who leads


MOVING = dict(reshape=0, quantize=1)


@pytest.mark.parametrize('hooks', [[], [dict(type='mmgdrq.ScaleClipHook')]])
@pytest.mark.parametrize('stages', [MOVING, dict(quantize=2), dict(quantize=0, freeze=1)])
def test_stages_that_nothing_leads(tmp_path, hooks, stages):
    runner = toy_runner(tmp_path, 2, model=toy(stages=stages), custom_hooks=hooks)
    with pytest.raises(ConfigError, match=r"model.quant.stages: .*stay in '.*mmgdrq.GDRQHook.*set_stage"):
        runner.train()


def test_stages_that_never_change_need_no_leader(tmp_path):
    runner = toy_runner(tmp_path, model=toy(stages=dict(reshape=0)), custom_hooks=[])
    runner.train()
    assert mmgdrq.get_stage(runner.model) == 'reshape'


def test_the_hook_leads(tmp_path):
    runner = toy_runner(tmp_path, 2, dict(), lambda r: mmgdrq.get_stage(r.model), model=toy(stages=MOVING))
    runner.train()
    assert runner.recorder.seen == ['reshape'] * 3 + ['quantize'] * 3


def test_stages_by_hand():
    model = MODELS.build(toy(stages=MOVING)).train()
    images = torch.randn(2, 3, 8, 8)
    with pytest.raises(ConfigError, match='nothing leads'):
        model(images)
    model.eval()
    mmgdrq.set_stage(model, 'reshape')
    model.train()(images)
    mmgdrq.set_stage(model, 'quantize')
    assert mmgdrq.get_stage(copy.deepcopy(model)) == 'quantize'
    copy.deepcopy(model)(images)


def test_unled_stages_can_be_evaluated_and_loaded(tmp_path):
    trained = toy_runner(tmp_path, 2, dict(), model=toy(stages=MOVING))
    trained.train()
    model = MODELS.build(toy(stages=MOVING))
    model.load_state_dict(trained.model.state_dict())
    assert mmgdrq.get_stage(model) == 'quantize'
    model.eval()(torch.randn(2, 3, 8, 8))
    with pytest.raises(ConfigError, match='nothing leads'):
        model.train()(torch.randn(2, 3, 8, 8))
