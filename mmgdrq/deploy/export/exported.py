"""Describe a part of a model and its graph."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from mmgdrq_runtime.manifest import file_sha256

from ...quantized_model.dense_parts import Part
from ..engines.base import Engine
from .block_module import BlockModule

Axes = frozenset[int]
"""Axes of an input that are free in a graph."""


@dataclass(frozen=True)
class Exported:
    """One part as a graph.

    Attributes:
        part: its module computes in torch what the graph computes.
        path: ONNX file.
        example: the part's first input on the sample images.
        engine: that the graph is for.
        blocks: quantized blocks in the order of the graph; one that is called several times occurs several times.
        free: axes of the input that are free in the graph.
    """

    part: Part
    path: Path
    example: Tensor
    engine: Engine
    blocks: list[BlockModule]
    free: Axes

    def entry(self) -> dict[str, Any]:
        """What the manifest says about the graph."""
        return dict(
            file=self.path.name,
            tree=pytree.treespec_dumps(self.part.module.tree),
            blocks=len(self.blocks),
            sha256=file_sha256(self.path),
        )
