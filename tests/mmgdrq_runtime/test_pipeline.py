"""The pipeline file: what is read, what is refused, and that nothing else happens."""

import contextlib
import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgdrq_runtime.errors import CheckpointError, ExportError, InputError, MMGDRQError
from mmgdrq_runtime.manifest import json_sha256
from mmgdrq_runtime.model import Model
from mmgdrq_runtime.pipeline import MAX_BYTES, PIPELINE, check_content, pipeline_file, read_pipeline

NMS = dict(iou_threshold=0.5, class_agnostic=False, split_thr=10000, max_num=-1)
DELTAS = dict(type='deltas', size=4, means=[0.0] * 4, stds=[1.0] * 4, max_ratio=4.1, center_clamp=None, clip=True)
ANCHORS = dict(type='anchors', base=[[[-8.0, -8.0, 8.0, 8.0]]], strides=[[8.0, 8.0]])
DENSE = dict(
    outputs=2,
    activation='sigmoid',
    priors=ANCHORS,
    coder=DELTAS,
    nms_pre=100,
    min_box_size=0,
    nms=NMS,
    max_per_image=10,
)
ROI = dict(strides=[8.0], size=[2, 2], sampling_ratio=0, aligned=True, finest_scale=56)
DECODERS = {
    'classifier': dict(type='classifier'),
    'dense': dict(type='dense', factors=False, score_thr=0.3, **DENSE),
    'segmentor': dict(type='segmentor', align_corners=False, threshold=0.3, window=None),
    'two_stage': dict(
        type='two_stage',
        rpn=dict(DENSE, outputs=1),
        stages=[dict(part='bbox_head', coder=DELTAS, class_agnostic=True, roi=ROI)],
        score_thr=0.1,
        nms=NMS,
        max_per_image=10,
        mask=dict(parts=['mask_head'], roi=ROI, threshold=0.5, class_agnostic=True),
    ),
    'yolov3': dict(
        type='yolov3',
        outputs=2,
        priors=ANCHORS,
        conf_thr=0.1,
        score_thr=0.1,
        nms_pre=100,
        min_box_size=-1,
        nms=NMS,
        max_per_image=10,
    ),
    'yolox': dict(
        type='yolox', outputs=2, priors=dict(type='points', offset=0, strides=[[8.0, 8.0]]), score_thr=0.1, nms=NMS
    ),
}
STEPS = [
    dict(type='resize', scale=[32, 24], keep_ratio=True, library='cv2', interpolation='bilinear'),
    dict(type='pad', size=None, divisor=8, square=False, value=[1, 2, 3]),
]
PREPROCESSING = dict(
    steps=STEPS, reverse_channels=True, mean=[1.0] * 3, std=[2.0] * 3, pad_size=None, pad_divisor=8, pad_value=0
)
MAPS = {'classifier': [(5,)], 'dense': [(2, 3, 4), (4, 3, 4)], 'segmentor': [(3, 3, 4)], 'yolov3': [(7, 3, 4)]}
MAPS['two_stage'] = [(4, 3, 4), (1, 3, 4), (4, 3, 4)]
MAPS['yolox'] = [(2, 3, 4), (4, 3, 4), (1, 3, 4)]
GRAPHS = {'onnxruntime': {'dense': {'sha256': 'x'}}}


def content_of(kind: str) -> dict:
    return copy.deepcopy(dict(preprocessing=PREPROCESSING, decoder=DECODERS[kind], classes=['a', 'b'], palette=None))


def write(folder, whole) -> None:
    (folder / PIPELINE).write_text(json.dumps(whole))


def with_sum(whole: dict) -> dict:
    rest = {key: value for key, value in whole.items() if key != 'sha256'}
    return {**rest, 'sha256': json_sha256(rest)}


@pytest.mark.parametrize('kind', DECODERS)
def test_what_was_written_is_read(tmp_path, kind):
    whole = pipeline_file(content_of(kind), GRAPHS)
    write(tmp_path, whole)
    assert read_pipeline(tmp_path, GRAPHS) == whole


@pytest.mark.parametrize(
    'change',
    [
        {'format': 'something'},
        {'version': 2},
        {'version': True},
        {'decoder': {'type': 'magic'}},
        {'decoder': None},
        {'preprocessing': {}},
        {'classes': [1]},
        {'palette': [[1, 2]]},
        {'more': 1},
        {'graphs_sha256': 'y'},
    ],
    ids=str,
)
def test_a_right_checksum_does_not_help(tmp_path, change):
    write(tmp_path, with_sum({**pipeline_file(content_of('dense'), GRAPHS), **change}))
    with pytest.raises(CheckpointError, match=r'pipeline\.json: cannot be read'):
        read_pipeline(tmp_path, GRAPHS)


def test_an_altered_file(tmp_path):
    whole = pipeline_file(content_of('dense'), GRAPHS)
    whole['decoder']['score_thr'] = 0.5
    write(tmp_path, whole)
    with pytest.raises(CheckpointError, match='checksum'):
        read_pipeline(tmp_path, GRAPHS)


@pytest.mark.parametrize('text', ['', '[', '[]', 'null', '"x"', '1', '[' * 100_000, '\udc80', 'NaN'])
def test_what_is_no_pipeline_file(tmp_path, text):
    (tmp_path / PIPELINE).write_bytes(text.encode('utf-8', 'surrogateescape'))
    with pytest.raises(CheckpointError, match=r'pipeline\.json'):
        read_pipeline(tmp_path, GRAPHS)


def test_a_missing_or_huge_file(tmp_path):
    with pytest.raises(CheckpointError, match=r'tools/deploy\.py --export'):
        read_pipeline(tmp_path, GRAPHS)
    (tmp_path / PIPELINE).write_bytes(b' ' * (MAX_BYTES + 1))
    with pytest.raises(CheckpointError, match='more than'):
        read_pipeline(tmp_path, GRAPHS)


def test_a_reason_is_told(tmp_path):
    write(tmp_path, pipeline_file({'reason': 'DETRHead: is not known'}, GRAPHS))
    with pytest.raises(ExportError, match=r'DETRHead.*|load_deployed'):
        read_pipeline(tmp_path, GRAPHS)


def places(value, path=()):
    """Paths of everything in a value of JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, element in items:
        yield from places(element, (*path, key))


HOSTILE = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 1, 2, 3, 10**30, 1e300, float('nan'), float('inf'), '', 'dense', '../x', [], {}]
    ),
    st.integers(-5, 20000),
    st.floats(-1e3, 1e3),
    st.lists(st.integers(-3, 300), max_size=5),
)


@pytest.mark.parametrize('kind', DECODERS)
def test_any_change_is_refused_or_runs(kind):
    """Whatever stands in a file with a right checksum: one clear error, or a result of bounded size."""
    whole = content_of(kind)
    everywhere = list(places(whole))[1:]
    rng = np.random.default_rng(0)
    maps = [rng.normal(0, 2, (1, *shape)).astype(np.float32) for shape in MAPS[kind]]
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    parts = {
        'dense': lambda x: maps,
        'bbox_head': lambda x: [np.zeros((len(x), 3), np.float32), np.zeros((len(x), 4), np.float32)],
        'mask_head': lambda x: [np.zeros((len(x), 1, 4, 4), np.float32)],
    }

    @given(st.lists(st.tuples(st.sampled_from(everywhere), HOSTILE), max_size=2))
    def check(changes):
        content = copy.deepcopy(whole)
        for path, value in changes:
            place = content
            try:
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = value
            except (IndexError, KeyError, TypeError):
                continue
        try:
            check_content(json.loads(json.dumps(content)))
        except ValueError:
            return
        with contextlib.suppress(MMGDRQError):
            Model(content, parts)(image)

    check()


def test_an_image_that_would_become_too_large_is_refused():
    """A limit on the short side says nothing about the long one."""
    content = content_of('classifier')
    step = dict(type='resize_edge', size=224, edge='short', library='pillow', interpolation='bilinear')
    content['preprocessing']['steps'] = [step]
    check_content(content)
    with pytest.raises(InputError, match='224 x 448,000 pixels'):
        Model(content, {})(np.zeros((1, 2000, 3), np.uint8))
