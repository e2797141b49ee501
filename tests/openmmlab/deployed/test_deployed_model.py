"""``mmgdrq.load_deployed`` as an application uses it: a JPEG file in, the data sample of the package out."""

import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import mmgdrq
from mmgdrq.deploy import save_folded
from mmgdrq.deploy.deployment import export
from mmgdrq.errors import CheckpointError, ExportError, InputError
from tests.integration.test_engines_on_models import MODELS_OF, head_of

pytest.importorskip('onnx', reason='onnx is not installed')
ENGINES = ('onnxruntime', 'openvino')
SIZE = 64
QUANT = dict(weight=dict(bits=4), activation=dict(bits=8))
"""More bits than usual: a rounding that falls differently in an engine then spreads less in an untrained network."""
PREPROCESSOR = dict(mean=[123.0, 117.0, 104.0], std=[58.0, 57.0, 57.0])
PACKAGES = {
    'RetinaNet': ('DetDataPreprocessor', [dict(type='Resize', scale=(SIZE, SIZE), keep_ratio=False)], 'PackDetInputs'),
    'FCN': ('SegDataPreProcessor', [dict(type='Resize', scale=(SIZE, SIZE), keep_ratio=False)], 'PackSegInputs'),
    'ResNet-18': ('ClsDataPreprocessor', [dict(type='Resize', scale=(SIZE, SIZE))], 'PackInputs'),
}


def config_of(name: str, deploy=None) -> Config:
    scope, model = MODELS_OF[name]
    preprocessor, steps, pack = PACKAGES[name]
    model = dict(model, data_preprocessor=dict(type=preprocessor, **PREPROCESSOR))
    if name == 'RetinaNet':
        model['test_cfg'] = dict(nms_pre=50, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5)
    meta = dict(meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')) if scope == 'mmdet' else {}
    annotations = dict(type='LoadAnnotations')
    return Config(
        dict(
            default_scope=scope,
            model=model,
            custom_hooks=[
                dict(type='mmgdrq.GDRQHook', **QUANT, deploy=deploy),
            ],
            test_dataloader=dict(
                dataset=dict(pipeline=[dict(type='LoadImageFromFile'), *steps, annotations, dict(type=pack, **meta)])
            ),
        )
    )


def deploy(name: str, out, simulated=None):
    cfg = config_of(name, simulated)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    with torch.no_grad():
        model = MODELS.build(cfg.model)
    mmgdrq.quantize(model, **QUANT)
    if simulated:
        mmgdrq.deploy.simulate(model, simulated)
    x = torch.randn(2, 3, SIZE, SIZE)
    model.forward = lambda: run(model)  # a training iteration is a call of the model itself

    def run(target):
        return head_of(target)(target.extract_feat(x))

    with torch.no_grad():
        for _ in range(2):
            model.train()()
    del model.forward
    folded = mmgdrq.fold(model.eval(), example=run)

    def graphs(folder):
        written = {}
        for engine in ENGINES:
            (folder / engine).mkdir()
            parts = export(folded, run, folder / engine, engine)
            written[engine] = {part.part.name: part.entry() for part in parts}
        return written

    return save_folded(folded, out, cfg.pretty_text, graphs)


@pytest.fixture(scope='module', params=PACKAGES)
def deployed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp('deployed')
    return request.param, deploy(request.param, folder / 'model'), jpeg(folder)


def jpeg(folder):
    import cv2

    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    image = cv2.resize(image, (96, 72), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(folder / 'image.jpg'), image)
    return folder / 'image.jpg'


def predictions_of(name: str, sample) -> torch.Tensor:
    if name == 'RetinaNet':
        assert sample.pred_instances.bboxes.shape == (5, 4)
        return sample.pred_instances.scores
    if name == 'FCN':
        assert sample.pred_sem_seg.data.shape == (1, 72, 96)
        return sample.seg_logits.data
    assert sample.pred_label.item() in range(10)
    return sample.pred_score


@pytest.mark.parametrize('engine', ENGINES)
def test_a_jpeg_file(deployed, engine):
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    name, path, image = deployed
    expected = predictions_of(name, mmgdrq.load_deployed(path, engine='torch')(image))
    model = mmgdrq.load_deployed(path, engine=engine, threads=1)
    sample = model(str(image))
    assert type(sample).__module__.split('.')[0] == MODELS_OF[name][0]
    found = predictions_of(name, sample)
    # results of 8 bits and ties that fall differently spread in an untrained network
    assert (found - expected).abs().mean() < 0.25 * expected.std() + 5e-3
    assert torch.equal(predictions_of(name, model(image)), found)


def test_an_array_is_what_its_file_is(deployed):
    import cv2

    name, path, image = deployed
    model = mmgdrq.load_deployed(path, engine='torch')
    from_file, from_array = (predictions_of(name, model(x)) for x in (image, cv2.imread(str(image))))
    assert torch.allclose(from_file, from_array, atol=1e-5)


def test_errors(deployed, tmp_path, monkeypatch):
    _, path, image = deployed
    with pytest.raises(ExportError, match=r"engine 'tensorflow' is unknown\. Expected onnxruntime, openvino or torch"):
        mmgdrq.load_deployed(path, engine='tensorflow')
    with pytest.raises(CheckpointError, match='nowhere: does not exist'):
        mmgdrq.load_deployed(tmp_path / 'nowhere')
    with pytest.raises(CheckpointError, match='cannot be read as the manifest'):
        mmgdrq.load_deployed(tmp_path)
    net = mmgdrq.quantize(nn.Sequential(nn.Conv2d(3, 4, 3))).train()
    net(torch.rand(1, 3, 6, 6))
    save_folded(mmgdrq.fold(net.eval()), tmp_path / 'plain')
    with pytest.raises(CheckpointError, match=r'has no model.*load_folded'):
        mmgdrq.load_deployed(tmp_path / 'plain', engine='torch')
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(ExportError, match='pip install openvino'):
        mmgdrq.load_deployed(path, engine='openvino')
    model = mmgdrq.load_deployed(path, engine='torch')
    with pytest.raises(InputError, match=r'no\.jpg does not exist'):
        model(image.parent / 'no.jpg')
    with pytest.raises(InputError, match=r'manifest\.json cannot be read as an image'):
        model(path / 'manifest.json')
    for array in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(InputError, match=r'expected \(H, W, 3\), uint8, BGR'):
            model(array)
    with pytest.raises(InputError, match='NoneType; expected a file'):
        model(None)


def test_a_model_that_was_trained_with_the_simulation(tmp_path):
    path = deploy('ResNet-18', tmp_path / 'model', 'onnxruntime')
    image = jpeg(tmp_path)
    folded, deployed = (mmgdrq.load_deployed(path, engine=engine) for engine in ('torch', 'onnxruntime'))
    assert mmgdrq.deploy.simulated(folded.model)
    assert (folded(image).pred_score - deployed(image).pred_score).abs().max() < 0.02
