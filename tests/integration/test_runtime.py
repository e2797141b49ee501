"""Deployed directories give the same results without OpenMMLab as with it, on the same engine."""

import numpy as np
import pytest
from mmengine.config import Config

import mmgdrq
import mmgdrq_runtime
from mmgdrq.deploy.end2end import DECODERS, write_end2end
from mmgdrq_runtime.engines import ONNXRUNTIME, is_installed
from mmgdrq_runtime.preprocessing import STEPS, ImageInfo
from tests.helpers.deployed import deploy_random
from tests.helpers.pictures import smooth_image
from tests.helpers.stable_order import keep_order_of_equals

onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
pytest.importorskip('onnx', reason='onnx is not installed')
CONFIGS = (
    'resnet18_digits',
    'retinanet_r18_fpn_digits',
    'ssd_vgg11_digits',
    'faster_rcnn_r18_fpn_digits',
    'fcn_r18_digits',
    'pspnet_r18_digits',
)
WITH_OPENVINO = ('faster_rcnn_r18_fpn_digits', 'fcn_r18_digits')


@pytest.fixture(scope='module', params=CONFIGS)
def deployed(request, tmp_path_factory):
    """The directory, and images of several sizes, as far as the model takes them."""
    size = 32 if 'resnet18_digits' in request.param else 128
    images = [smooth_image(size, size, seed) for seed in range(2)]
    cfg = Config.fromfile(f'configs/gdrq/{request.param}.py')
    engines = ['onnxruntime'] + ['openvino'] * (request.param in WITH_OPENVINO and is_installed('openvino'))
    path = deploy_random(cfg, tmp_path_factory.mktemp(request.param) / 'model', images, engines)
    others = [smooth_image(100, 90), smooth_image(75, 128)] if size == 128 else []
    return path, engines, [*images, *others]


def test_results_are_those_of_openmmlab(deployed, monkeypatch):
    path, engines, images = deployed
    keep_order_of_equals(monkeypatch)
    for engine in engines:
        expected = mmgdrq.load_deployed(path, engine=engine, threads=1)
        model = mmgdrq_runtime.load(path, engine=engine, threads=1)
        for image in images:
            assert_same(model(image), expected(image))


def assert_same(result, sample) -> None:
    if isinstance(result, mmgdrq_runtime.Classification):
        assert np.abs(result.class_scores - sample.pred_score.numpy()).max() < 1e-6
        assert result.label == sample.pred_label.item()
    elif isinstance(result, mmgdrq_runtime.Segmentation):
        assert np.array_equal(result.label_map, sample.pred_sem_seg.data[0].numpy())
        assert len(np.unique(result.label_map)) > 1
    else:
        found = sample.pred_instances
        assert len(result) == len(found) > 0
        assert np.abs(result.scores - found.scores.numpy()).max() < 1e-5
        assert np.abs(result.boxes - found.bboxes.numpy()).max() < 0.01
        assert result.labels.tolist() == found.labels.tolist()


def test_an_image_in_a_batch_has_the_result_that_it_has_alone(deployed):
    path, _, images = deployed
    model = mmgdrq_runtime.load(path, threads=1)
    for image, result in zip(images, model(images)):
        alone = model(image)
        if path.parent.name.startswith('ssd'):
            assert_scores_within_a_code(result, alone)
            continue
        for name, value in vars(alone).items():
            assert np.array_equal(value, getattr(result, name)), name


def assert_scores_within_a_code(result, alone) -> None:
    """SSD has float layers between its integer ones. A batch sums them up in another order, which may change a code."""
    assert len(result) == len(alone) > 0
    assert np.abs(result.scores - alone.scores).max() < 1e-3


def test_names_of_classes(deployed):
    path, *_ = deployed
    model = mmgdrq_runtime.load(path)
    assert model.classes[-10:] == list('0123456789')


def test_one_graph_gives_the_same(deployed, tmp_path):
    """Its boxes are in pixels of the resized image."""
    path, _, images = deployed
    model = mmgdrq_runtime.load(path, threads=1)
    if model.pipeline['decoder']['type'] not in DECODERS:
        with pytest.raises(mmgdrq_runtime.ExportError, match='has no ONNX operators'):
            write_end2end(path, 'onnxruntime', tmp_path / 'end2end.onnx')
        return
    image = images[0]
    for step in model.pipeline['preprocessing']['steps']:
        image, _ = STEPS[step['type']](image, ImageInfo(image.shape[:2], image.shape[:2]), step)
    file = write_end2end(path, 'onnxruntime', tmp_path / 'end2end.onnx')
    session = onnxruntime.InferenceSession(str(file), **ONNXRUNTIME)
    found = dict(zip([value.name for value in session.get_outputs()], session.run(None, {'image': image[None]})))
    if 'boxes' in found:
        found['boxes'] = found['boxes'] * (len(images[0]) / len(image))
    for name, value in found.items():
        assert np.abs(value - getattr(model(images[0]), name)).max() < 1e-4
