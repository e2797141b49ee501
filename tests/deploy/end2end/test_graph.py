"""One graph gives the results of the numpy runtime, in the pixels of the resized image."""

import numpy as np
import pytest

from mmgdrq.deploy.end2end import build_end2end
from mmgdrq.deploy.engines import find_engine
from mmgdrq.errors import ExportError
from mmgdrq_runtime.decoders import DECODERS
from mmgdrq_runtime.preprocessing import prepare
from tests.mmgdrq_runtime.decoders.test_dense import CLASSES, HEADS, STRIDES, head_of, maps_of

onnx = pytest.importorskip('onnx', reason='onnx is not installed')
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from mmgdrq.openmmlab.pipeline_json import as_json  # noqa: E402
from mmgdrq.openmmlab.pipeline_json.one_stage import describe_dense  # noqa: E402

PREPROCESSING = dict(
    steps=[],
    reverse_channels=True,
    mean=[103.5, 116.3, 123.7],
    std=[57.4, 57.1, 58.4],
    pad_size=None,
    pad_divisor=32,
    pad_value=0,
)
KINDS = [name for name in HEADS if name != 'YOLOv3']
SHAPE = (50, 90)


def constant_graph(folder, maps):
    """A graph whose outputs are these maps, whatever image it gets, and that image as a tensor."""
    nodes = [  # a zero that depends on the input, so that an engine cannot compute everything beforehand
        helper.make_node('ReduceMean', ['input'], ['mean'], keepdims=0),
        helper.make_node('Mul', ['mean', 'zero'], ['nothing']),
        *(helper.make_node('Add', [f'map_{i}', 'nothing'], [f'output_{i}']) for i in range(len(maps))),
    ]
    outputs = [
        helper.make_tensor_value_info(f'output_{i}', TensorProto.FLOAT, [None] * (m.ndim + 1))
        for i, m in enumerate(maps)
    ]
    tensors = [numpy_helper.from_array(m[None], f'map_{i}') for i, m in enumerate(maps)]
    tensors.append(numpy_helper.from_array(np.float32(0), 'zero'))
    x = helper.make_tensor_value_info('input', TensorProto.FLOAT, [None, 3, None, None])
    graph = helper.make_graph(nodes, 'dense', [x], outputs, tensors)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8), folder / 'dense.onnx'
    )
    return folder / 'dense.onnx'


def run(path, image: np.ndarray, engine: str = 'onnxruntime') -> dict[str, np.ndarray]:
    package = pytest.importorskip(engine, reason=f'{engine} is not installed')
    if engine == 'openvino':
        core = package.Core()
        compiled = core.compile_model(core.read_model(str(path)), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
        return {value.any_name: np.array(x) for value, x in compiled({'image': image[None]}).items()}
    session = package.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, {'image': image[None]})))


@pytest.mark.parametrize('test', [{}, dict(score_thr=0.9999), dict(min_bbox_size=6, nms_pre=20)], ids=str)
@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('name', KINDS)
def test_detections_are_those_of_the_runtime(tmp_path, name, test, engine):
    head, channels = head_of(name, **test)
    image = np.zeros((*SHAPE, 3), np.uint8)
    _, info = prepare(image, PREPROCESSING)
    for seed in range(3):
        maps = maps_of(np.random.default_rng(seed), name, channels, 1.5)
        spec = as_json(describe_dense(head, len(maps)))
        expected = DECODERS[spec['type']](maps, info, spec, {})
        content = dict(preprocessing=PREPROCESSING, decoder=spec)
        path = constant_graph(tmp_path, maps)
        found = run(build_end2end(path, content, tmp_path / 'end2end.onnx', find_engine(engine)), image, engine)
        assert found['labels'].tolist() == expected.labels.tolist()
        assert np.abs(found['scores'] - expected.scores).max(initial=0) < 1e-5
        assert np.abs(found['boxes'] - expected.boxes).max(initial=0) < 1e-4
    assert len(expected) == 0 or len(expected) > 5


@pytest.mark.parametrize(
    'change', [{}, dict(pad_size=[60, 70], pad_value=3), dict(reverse_channels=False, mean=None, std=None)], ids=str
)
def test_the_tensor_is_that_of_the_runtime(tmp_path, change):
    """A classifier whose logits are the pixels."""
    spec = {**PREPROCESSING, **change}
    node = helper.make_node('Flatten', ['input'], ['output_0'])
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (('input', [None] * 4), ('output_0', [None] * 2))
    ]
    graph = helper.make_graph([node], 'dense', values[:1], values[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8), tmp_path / 'dense.onnx'
    )
    image = np.random.default_rng(0).integers(0, 9, (*SHAPE, 3), dtype=np.uint8)
    content = dict(preprocessing=spec, decoder=dict(type='classifier'))
    path = build_end2end(tmp_path / 'dense.onnx', content, tmp_path / 'end2end.onnx', find_engine('onnxruntime'))
    found = run(path, image)
    tensor, info = prepare(image, spec)
    expected = DECODERS['classifier']([tensor.reshape(-1)], info, {}, {}).class_scores
    assert np.abs(found['class_scores'] / expected - 1).max() < 1e-4


def test_a_decoder_without_operators(tmp_path):
    maps = [np.zeros((2 * (5 + CLASSES), 4, 4), np.float32)] * len(STRIDES)
    content = dict(preprocessing=PREPROCESSING, decoder=dict(type='yolov3'))
    with pytest.raises(ExportError, match='yolov3'):
        build_end2end(constant_graph(tmp_path, maps), content, tmp_path / 'end2end.onnx', find_engine('openvino'))


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_boxes_that_overlap_by_exactly_the_threshold_stay(tmp_path, engine):
    """Two boxes of 2x1 cells that share one: an overlap of 1/3, which float32 rounds to the same number."""
    anchors = dict(type='anchors', base=[[[0.0, 0.0, 16.0, 8.0]]], strides=[[8.0, 8.0]])
    coder = dict(type='deltas', size=4, means=[0.0] * 4, stds=[1.0] * 4, max_ratio=4.1, center_clamp=None, clip=False)
    nms = dict(iou_threshold=float(np.float32(64 / 192)), class_agnostic=False, split_thr=10000, max_num=-1)
    spec = dict(
        type='dense', outputs=1, activation='sigmoid', factors=False, score_thr=0.1, priors=anchors, coder=coder
    )
    spec.update(nms_pre=10, min_box_size=-1, nms=nms, max_per_image=10)
    maps = [np.float32([[[2, 1]]]), np.zeros((4, 1, 2), np.float32)]
    image = np.zeros((32, 32, 3), np.uint8)
    expected = DECODERS['dense'](maps, prepare(image, PREPROCESSING)[1], spec, {})
    content = dict(preprocessing=PREPROCESSING, decoder=spec)
    path = build_end2end(constant_graph(tmp_path, maps), content, tmp_path / 'end2end.onnx', find_engine(engine))
    assert len(run(path, image, engine)['boxes']) == len(expected) == 2
