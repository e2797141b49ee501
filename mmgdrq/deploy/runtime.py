"""A deployed directory as a model that an engine runs."""

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..config_parts import without_weights
from ..errors import CheckpointError, ExportError, InputError
from .building import build_model, model_config, quantize_as_trained
from .config_text import parse_config, registered_names_only
from .engines import ENGINES, check_engine, open_engine
from .manifest import PathLike, check_file, read_manifest
from .pipeline import Image, make_pipeline
from .seams import parts_of


class EngineCall:
    """Runs one graph in the place of a part of the model.

    Args:
        run: a float32 array to the list of the graph's results.
        tree: structure of the results, as torch's pytree writes it.
    """

    def __init__(self, run, tree: str) -> None:
        self.run = run
        try:
            self.tree = pytree.treespec_loads(tree)
        except (AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError) as error:
            raise CheckpointError(f'graphs: {tree[:60]!r} is not a structure of results ({error!r})') from None

    def __call__(self, x: Tensor) -> Any:
        count = len(x)
        array = x.detach().cpu().numpy().astype(np.float32)
        if count == 0:  # no RoIs: engines want at least one
            array = np.zeros((1, *array.shape[1:]), np.float32)
        results = [torch.from_numpy(np.asarray(r)).to(x.device) for r in self.run(array)]
        if len(results) != self.tree.num_leaves:
            raise CheckpointError(
                f'graphs: one has {len(results)} results, the manifest says {self.tree.num_leaves}. Write the model '
                'again with tools/deploy.py --export'
            )
        return pytree.tree_unflatten(results if count else [r[:0] for r in results], self.tree)


def plug_engine(model: nn.Module, path: PathLike, engine: str, threads: int = 0) -> nn.Module:
    """Let an engine run the dense parts of a model.

    Args:
        model: result of :func:`~mmgdrq.deploy.artifact.load_folded` for the same directory.
        path: directory that ``tools/deploy.py`` wrote.
        engine: ``'onnxruntime'`` or ``'openvino'``.
        threads: of the engine; 0 lets it choose.

    Raises:
        CheckpointError: the directory has no graphs for this engine, or a graph is missing or altered.
        ExportError: the engine is not installed or does not accept a graph.
    """
    check_engine(engine)
    path = Path(path)
    graphs = read_manifest(path).get('graphs') or {}
    if engine not in graphs:
        raise CheckpointError(
            f'{path}: has no graphs for {engine} (it has: {", ".join(graphs) or "none"}). Write it again with '
            'tools/deploy.py --export'
        )
    for part in parts_of(model):
        entry = graphs[engine].get(part.name)
        if entry is None:
            raise CheckpointError(f'{path}: has no graph for {part.name}. Write it again with tools/deploy.py --export')
        file = _checked_file(path, engine, entry)
        part.plug(EngineCall(open_engine(engine, file, threads), entry['tree']))
    return model


def _checked_file(path: Path, engine: str, entry: dict[str, Any]) -> Path:
    """The file of a graph, which must lie in its folder and have the manifest's checksum."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ('file', 'tree', 'sha256')):
        raise CheckpointError(
            f'{path}: its manifest does not say which file and structure a graph for {engine} has. Write it again '
            'with tools/deploy.py --export'
        )
    file = path / engine / Path(entry['file']).name
    return check_file(file, entry['sha256'], 'Write it again with tools/deploy.py --export')


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
            image: a file, or an array of shape ``(H, W, 3)``, uint8, BGR.

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
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                f'image: an array of shape {image.shape}, {image.dtype}; expected (H, W, 3), uint8, BGR, as '
                'cv2.imread gives it'
            )
    elif not isinstance(image, (str, Path)):
        raise InputError(f'image: {type(image).__name__}; expected a file or a BGR array')
    elif not Path(image).is_file():
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
    from mmengine.registry import init_default_scope

    from .artifact import CONFIG, load_folded, read_config

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
    init_default_scope(_known_scope(path / CONFIG, cfg.get('default_scope', 'mmengine')))
    with registered_names_only(path / CONFIG):
        with torch.no_grad():
            model = build_model(without_weights(model_config(cfg)))
        deployed = DeployedModel(model, cfg)
    quantize_as_trained(model, cfg, path / CONFIG)
    load_folded(model, path)
    if engine != 'torch':
        plug_engine(model, path, engine, threads)
    model.eval()
    return deployed


def _known_scope(file: Path, scope: Any) -> str:
    """A scope is a package that mmengine imports; one of a stranger could lie in the current folder."""
    from mmengine.config.utils import MODULE2PACKAGE

    if isinstance(scope, str) and (scope in MODULE2PACKAGE or scope in sys.modules):
        return scope
    raise CheckpointError(f'{file}: default_scope {scope!r} is no package of OpenMMLab. Import it before')
