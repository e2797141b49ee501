"""The pipeline file of a deployed directory: what happens before and after the graphs, as data.

Version 1 is a table with ``format``, ``version``, ``sha256`` (of the rest), ``graphs_sha256`` (of the graphs in the
manifest), and either ``reason``, why a model cannot be described, or ``preprocessing``, ``decoder``, ``classes`` and
``palette``. Lengths are in pixels. ``scale`` and ``size`` of a step are width first, as in OpenMMLab's steps; sizes of
tensors, windows and regions are height first.
"""

import json
from pathlib import Path
from typing import Any

from .errors import CheckpointError, ExportError
from .manifest import PathLike, json_sha256
from .schema import boolean, by_type, integer, listed, number, one_of, optional, table, text

FORMAT, VERSION = 'mmgdrq-pipeline', 1
PIPELINE = 'pipeline.json'
MAX_BYTES = 4 << 20
"""A pipeline file of more than that is not read; most have a few thousand."""
MAX_SIDE = 8192
"""Longest side of an image or a tensor, in pixels."""

side = integer(1, MAX_SIDE)
pair = listed(side, 2, 2)
color = listed(number(0, 255), 3, 3)
score = number(-1, 1)
limit = integer(-1, 1_000_000)

STEP = by_type(
    resize=table(
        scale=pair, keep_ratio=boolean, library=one_of('cv2', 'pillow'), interpolation=one_of('bilinear', 'bicubic')
    ),
    resize_edge=table(
        size=side,
        edge=one_of('short', 'long', 'width', 'height'),
        library=one_of('cv2', 'pillow'),
        interpolation=one_of('bilinear', 'bicubic'),
    ),
    center_crop=table(size=pair),
    pad=table(size=optional(pair), divisor=optional(side), square=boolean, value=listed(integer(0, 255), 3, 3)),
    reverse_channels=table(),
)
PREPROCESSING = table(
    steps=listed(STEP, 0, 32),
    reverse_channels=boolean,
    mean=optional(listed(number(), 3, 3)),
    std=optional(listed(number(1e-6), 3, 3)),
    pad_size=optional(pair),
    pad_divisor=side,
    pad_value=number(),
)

strides = listed(listed(number(1, MAX_SIDE), 2, 2), 1, 32)
PRIORS = by_type(
    anchors=table(base=listed(listed(listed(number(), 4, 4), 1, 1000), 1, 32), strides=strides),
    points=table(offset=number(0, 1), strides=strides),
)
DELTAS = table(
    type=one_of('deltas'),
    size=one_of(4),
    means=listed(number(), 4, 4),
    stds=listed(number(), 4, 4),
    max_ratio=number(0, 80),
    center_clamp=optional(number(0)),
    clip=boolean,
)
CODER = by_type(
    deltas=lambda value, where: DELTAS({**value, 'type': 'deltas'}, where),
    distances=table(size=one_of(4), clip=boolean),
    integral=table(size=integer(8, 4096), clip=boolean),
)
NMS = table(iou_threshold=number(0, 1), class_agnostic=boolean, split_thr=integer(0, 10**9), max_num=limit)
classes = integer(1, 100_000)
DENSE = dict(
    outputs=classes,
    activation=one_of('sigmoid', 'softmax'),
    priors=PRIORS,
    coder=CODER,
    nms_pre=limit,
    min_box_size=number(-1),
    nms=NMS,
    max_per_image=limit,
)
ROI = table(
    strides=listed(number(1, MAX_SIDE), 1, 32),
    size=listed(integer(1, 64), 2, 2),
    sampling_ratio=integer(0, 16),
    aligned=boolean,
    finest_scale=number(1),
)
STAGE = table(part=text, coder=DELTAS, class_agnostic=boolean, roi=ROI)
MASK = table(parts=listed(text, 1, 16), roi=ROI, threshold=number(0, 1), class_agnostic=boolean)
WINDOW = table(size=pair, stride=pair)
DECODER = by_type(
    classifier=table(),
    dense=table(**DENSE, factors=boolean, score_thr=score),
    segmentor=table(align_corners=boolean, threshold=score, window=optional(WINDOW)),
    two_stage=table(
        rpn=table(**DENSE),
        stages=listed(STAGE, 1, 16),
        score_thr=score,
        nms=NMS,
        max_per_image=limit,
        mask=optional(MASK),
    ),
    yolov3=table(
        outputs=classes,
        priors=PRIORS,
        conf_thr=score,
        score_thr=score,
        nms_pre=limit,
        min_box_size=number(-1),
        nms=NMS,
        max_per_image=limit,
    ),
    yolox=table(outputs=classes, priors=PRIORS, score_thr=score, nms=NMS),
)
CONTENT = table(
    preprocessing=PREPROCESSING,
    decoder=DECODER,
    classes=listed(text, 0),
    palette=optional(listed(listed(integer(0, 255), 3, 3), 0)),
)
REMEDY = 'Write it again with tools/deploy.py --export'


def check_content(content: Any) -> None:
    """Check everything that a pipeline file says about a model.

    Raises:
        ValueError: names the key, what it has and what was expected.
    """
    CONTENT(content, 'pipeline')
    decoder = content['decoder']
    for part in (decoder, decoder.get('rpn', {})):
        priors = part.get('priors')
        if priors and priors['type'] == 'anchors' and len(priors['base']) != len(priors['strides']):
            raise ValueError(f'priors: {len(priors["base"])} levels of anchors and {len(priors["strides"])} strides')
    if (content['preprocessing']['mean'] is None) != (content['preprocessing']['std'] is None):
        raise ValueError('preprocessing: mean without std')


def pipeline_file(content: dict[str, Any], graphs: dict[str, Any]) -> dict[str, Any]:
    """Put format, version and checksums around a content.

    Args:
        content: ``preprocessing``, ``decoder``, ``classes`` and ``palette``, or ``reason`` alone.
        graphs: of the manifest.
    """
    if set(content) != {'reason'}:
        check_content(content)
    whole = {'format': FORMAT, 'version': VERSION, 'graphs_sha256': json_sha256(graphs), **content}
    return {**whole, 'sha256': json_sha256(whole)}


def read_pipeline(path: PathLike, graphs: dict[str, Any]) -> dict[str, Any]:
    """Read and check the pipeline file of a deployed directory.

    Args:
        path: the directory.
        graphs: of its manifest.

    Raises:
        CheckpointError: it is missing, not readable, altered, of another format or version, or of other graphs.
        ExportError: it says why the model cannot be described; the directory then runs through OpenMMLab only.
    """
    file = Path(path) / PIPELINE
    try:
        with open(file, 'rb') as stream:
            raw = stream.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ValueError(f'it has more than {MAX_BYTES:,} bytes')
        whole = json.loads(raw)
        _check_frame(whole, graphs)
    except (OSError, RecursionError, ValueError) as error:
        raise CheckpointError(
            f'{file}: cannot be read as the pipeline of a deployed model ({error}). {REMEDY}'
        ) from None
    if 'reason' in whole:
        raise ExportError(f'{path}: runs through OpenMMLab only, with mmgdrq.load_deployed: {whole["reason"]}')
    return whole


def _check_frame(whole: Any, graphs: dict[str, Any]) -> None:
    if not isinstance(whole, dict) or whole.get('format') != FORMAT:
        raise ValueError(f'format {FORMAT!r} expected')
    if whole.get('version') != VERSION or isinstance(whole['version'], bool):
        raise ValueError(f'version {whole.get("version")!r:.20}; this mmgdrq_runtime reads version {VERSION}')
    rest = {key: value for key, value in whole.items() if key != 'sha256'}
    if whole.get('sha256') != json_sha256(rest):
        raise ValueError('it was altered, as its checksum differs')
    content = {key: value for key, value in rest.items() if key not in ('format', 'version', 'graphs_sha256')}
    if rest.get('graphs_sha256') != json_sha256(graphs):
        raise ValueError('it belongs to other graphs than those of the manifest')
    if set(content) == {'reason'}:
        text(content['reason'], 'reason')
    else:
        check_content(content)
