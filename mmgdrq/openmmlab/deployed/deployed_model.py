"""A deployed directory as a model that an engine runs."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmgdrq_runtime.engines import ENGINES, check_engine
from mmgdrq_runtime.manifest import PathLike

from ...deploy.plugged_engine import plug_engine
from ...errors import CheckpointError, ExportError, InputError
from ..config_parts import without_weights
from .building import build_model, model_config, quantize_as_trained
from .config_types import check_types
from .deployed_config import parse_config
from .image_pipeline import Image, dataset_of_test, make_pipeline, steps_of

_BUILDING = threading.Lock()
"""Models are built one after the other: the default scope of mmengine is one for the whole process."""


class DeployedModel:
    """A deployed detector, segmentor or classifier for applications; see :func:`load_deployed`.

    Threads may share it; their calls run one after the other. For calls at the same time load it once for each thread.
    """

    def __init__(self, model: nn.Module, cfg) -> None:
        self.model, self.cfg = model, cfg
        self.pipeline = make_pipeline(cfg)
        self.turn = threading.Lock()

    def __call__(self, image: Image):
        """Run one image.

        Args:
            image: a file, or an array of shape ``(H, W, 3)``, uint8, BGR; of a model whose config reads images in gray
                also ``(H, W)`` or ``(H, W, 1)``.

        Returns:
            The data sample of the model's package, with its predictions.

        Raises:
            InputError: the file does not exist or is no image, or the array has another shape or type.
        """
        from mmengine.dataset import pseudo_collate

        _check_image(image)
        with self.turn, torch.no_grad():
            return self.model.test_step(pseudo_collate([self.pipeline(image)]))[0]


def _check_image(image: Image) -> None:
    if isinstance(image, np.ndarray):  # the pipeline checks it, as it knows what the config reads
        return
    if not isinstance(image, (str, Path)):
        raise InputError(f'image: {type(image).__name__}; expected a file or a BGR array')
    if not Path(image).is_file():
        raise InputError(f'image: {image} does not exist')


def load_deployed(path: PathLike, engine: str = 'onnxruntime', threads: int = 0) -> DeployedModel:
    """Load a directory that ``tools/deploy.py --export`` wrote.

    Its config is read as data, not run; modules of your own that it names must be imported before.

    Args:
        path: the directory.
        engine: ``'onnxruntime'``, ``'openvino'``, or ``'torch'`` for the folded model without an engine.
        threads: of the engine; 0 lets it choose.

    Raises:
        CheckpointError: the directory is incomplete, altered, newer or without graphs for the engine, or its config
            names something else than registered classes.
        ExportError: the engine is not installed or does not accept a graph.
    """
    from mmengine.config import Config

    from ...deploy.folding.artifact import CONFIG, load_folded, read_config

    if engine not in ('torch', *ENGINES):
        raise ExportError(f'engine {engine!r} is unknown. Expected {", ".join(ENGINES)} or torch')
    if engine != 'torch':
        check_engine(engine)
    path = Path(path)
    cfg = Config(parse_config(read_config(path), str(path / CONFIG)))
    if 'model' not in cfg:
        raise CheckpointError(
            f'{path / CONFIG}: has no model, as save_folded(..., config) got none. Build and quantize the model '
            'yourself, and load it with mmgdrq.deploy.load_folded(model, path)'
        )
    with _BUILDING:
        model, deployed = _build(cfg, path / CONFIG)
    quantize_as_trained(model, cfg, path / CONFIG)
    load_folded(model, path)
    if engine != 'torch':
        plug_engine(model, path, engine, threads)
    model.eval()
    return deployed


def _build(cfg: Mapping[str, Any], file: Path) -> tuple[nn.Module, DeployedModel]:
    """The model of a config as it was before it was quantized, with the pipeline of its images."""
    from mmengine.registry import init_default_scope

    scope = cfg.get('default_scope') or 'mmengine'
    config = without_weights(model_config(cfg))
    check_types(config, scope, file)
    check_types(steps_of(dataset_of_test(cfg)), scope, file)
    init_default_scope(scope)
    with torch.no_grad():
        model = build_model(config)
    return model, DeployedModel(model, cfg)
