"""A deployed directory as a model that runs without OpenMMLab."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union, cast

import numpy as np

from .decoders import DECODERS
from .decoders.segmentor import slide
from .engines import check_engine, open_engine
from .errors import CheckpointError
from .images import Image, load_image
from .manifest import PathLike, graph_file, read_manifest
from .pipeline import REMEDY, read_pipeline
from .preprocessing import ImageInfo, prepare
from .results import Result

Run = Callable[[np.ndarray], list[np.ndarray]]


def load(path: PathLike, engine: str = 'onnxruntime', threads: int = 0) -> 'Model':
    """Load a directory that ``tools/deploy.py --export`` wrote.

    Args:
        path: the directory.
        engine: ``'onnxruntime'`` or ``'openvino'``.
        threads: of the engine; 0 lets it choose.

    Raises:
        CheckpointError: the directory is incomplete, altered, newer or without graphs for the engine.
        ExportError: the engine is not installed or does not accept a graph, or the model runs through OpenMMLab only.
    """
    check_engine(engine)
    path = Path(path)
    manifest = read_manifest(path)
    if engine not in manifest['graphs']:
        raise CheckpointError(
            f'{path}: has no graphs for {engine} (it has: {", ".join(manifest["graphs"]) or "none"}). {REMEDY}'
        )
    pipeline = read_pipeline(path, manifest['graphs'])
    entries = manifest['graphs'][engine]
    files = {name: graph_file(path, engine, entry) for name, entry in entries.items()}
    parts = {name: open_engine(engine, file, threads) for name, file in files.items()}
    missing = _parts_of(pipeline['decoder']) - set(parts)
    if missing:
        raise CheckpointError(f'{path}: has no graph for {", ".join(sorted(missing))}. {REMEDY}')
    return Model(pipeline, parts)


def _parts_of(decoder: Mapping[str, Any]) -> set[str]:
    if decoder['type'] != 'two_stage':
        return {'dense'}
    return {'dense', *(stage['part'] for stage in decoder['stages']), *(decoder['mask'] or {'parts': []})['parts']}


class Model:
    """A detector, segmentor or classifier; see :func:`load`. Threads may share it.

    Attributes:
        classes: name of each label; empty where the config names none.
        palette: a colour for each label, red, green and blue from 0 to 255; None where the config has none.
        pipeline: what the pipeline file says.
    """

    def __init__(self, pipeline: Mapping[str, Any], parts: Mapping[str, Run]) -> None:
        self.pipeline, self._parts = pipeline, parts
        self.classes: list[str] = pipeline['classes']
        self.palette: Optional[list[list[int]]] = pipeline['palette']

    def __call__(self, images: Union[Image, Sequence[Image]]) -> Union[Result, list[Result]]:
        """Run one image, or several.

        Args:
            images: a file or an array of shape ``(H, W, 3)``, uint8, BGR; or a list of such.

        Returns:
            :class:`~mmgdrq_runtime.results.Detections`, :class:`~mmgdrq_runtime.results.Segmentation` or
            :class:`~mmgdrq_runtime.results.Classification`; for a list one for each image, as if it were alone.

        Raises:
            InputError: a file does not exist or is no image, or an array has another shape or type.
            CheckpointError: a graph has other outputs than the pipeline file says.
        """
        if isinstance(images, (list, tuple)):
            return self._run([load_image(image) for image in images])
        return self._run([load_image(cast(Image, images))])[0]

    def _run(self, images: Sequence[np.ndarray]) -> list[Result]:
        prepared = [prepare(image, self.pipeline['preprocessing']) for image in images]
        results: list[Any] = [None] * len(images)
        for shape in {tensor.shape for tensor, _ in prepared}:  # what has one size runs together
            index = [i for i, (tensor, _) in enumerate(prepared) if tensor.shape == shape]
            outputs = self._dense(np.stack([prepared[i][0] for i in index]))
            for row, i in enumerate(index):
                results[i] = self._decode([output[row] for output in outputs], prepared[i][1])
        return results

    def _dense(self, tensors: np.ndarray) -> list[np.ndarray]:
        decoder, run = self.pipeline['decoder'], self._parts['dense']
        if decoder['type'] == 'segmentor' and decoder['window'] is not None:
            return [np.stack([slide(run, tensor, decoder) for tensor in tensors])]
        return run(tensors)

    def _decode(self, outputs: list[np.ndarray], info: ImageInfo) -> Result:
        decoder = self.pipeline['decoder']
        try:
            return DECODERS[decoder['type']](outputs, info, decoder, self._parts)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f'pipeline: the outputs of the graphs, {[output.shape for output in outputs]!r:.300}, do not fit a '
                f'decoder of type {decoder["type"]!r} ({error}). {REMEDY}'
            ) from error
