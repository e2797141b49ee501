"""Replace the dense parts of a model by an engine."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mmgdrq_runtime.manifest import PathLike, graph_file, read_manifest

from ..errors import CheckpointError
from ..quantized_model.dense_parts import parts_of
from .engines import find_engine


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
        model: result of :func:`~mmgdrq.deploy.folding.artifact.load_folded` for the same directory.
        path: directory that ``tools/deploy.py`` wrote.
        engine: ``'onnxruntime'`` or ``'openvino'``.
        threads: of the engine; 0 lets it choose.

    Raises:
        CheckpointError: the directory has no graphs for this engine, or a graph is missing or altered.
        ExportError: the engine is not installed or does not accept a graph.
    """
    runner = find_engine(engine)
    runner.check_installed()
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
        file = graph_file(path, engine, entry, ('file', 'tree', 'sha256'))
        part.replace_by(EngineCall(runner.open(file, threads), entry['tree']))
    return model
