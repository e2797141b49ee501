"""Define what an engine is to this package, and find engines by name.

An engine outside of this package is a subclass of :class:`Engine`, and one line, ``register_engine(MyEngine())``.
"""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Optional, Protocol

import numpy as np
import torch
from torch import Tensor

from mmgdrq_runtime.engines import open_engine

from ...errors import ExportError, nearest
from ...quant import quantize
from .block import Block, Grid
from .lowering import code, constant, dequantized_weight, float_layer


@dataclass(frozen=True)
class Requantization:
    """What happens to the output of a block.

    Attributes:
        grid: that the output is quantized to, by nodes of its own; None: it stays float.
        reader: grid of the only layer that reads the output, at most behind a ReLU; the engine rounds to it at once.
        own: whether ``grid`` belongs to this output alone, and is not that of the next layer's input.
        in_float: whether the block is computed as int32, and then scaled and shifted in float, with a float bias.
    """

    grid: Optional[Grid] = None
    reader: Optional[Grid] = None
    own: bool = False
    in_float: bool = False


UNCHANGED = Requantization()


@dataclass(frozen=True)
class BlockCall:
    """One call of a block in a graph.

    Attributes:
        node: of its convolution or matrix product.
        block: what it computes.
        range: lowest and highest output on the sample images.
        trained: grid that the model was trained with, see :mod:`mmgdrq.deploy.simulation`.
        is_product: whether it is a ``MatMul``: a linear layer on inputs of more than two dimensions.
    """

    node: Any
    block: Block
    range: tuple[float, float]
    trained: Optional[Grid]
    is_product: bool


class Reader(Protocol):
    """Who reads what in a graph; :class:`mmgdrq.deploy.export.graph_reader.GraphReader`."""

    @property
    def calls(self) -> Sequence[BlockCall]:
        """All calls of blocks, in the order of the graph."""

    def leaves(self, node) -> bool:
        """Whether an output leaves the network, or leads to no further quantized layer."""

    def is_normalized_next(self, node) -> bool:
        """Whether a norm that is not part of the block reads the output."""

    def is_quantized_next(self, node) -> bool:
        """Whether nothing but a ReLU and one input quantizer follow."""

    def only_layer_behind(self, node) -> Any:
        """The layer behind ReLU, pooling and one input quantizer, if there is nothing else."""


class Engine:
    """One engine: the nodes that it turns into integer kernels, and what those compute.

    As it is, this class describes an engine that follows the ONNX standard to the letter: inputs clipped and quantized
    by ``QuantizeLinear``, a float bias, float outputs.

    Attributes:
        name: as in ``--export`` and in the manifest; also that of its Python package, where it runs here.
        runs_here: whether it runs on this machine, once its package is installed.
        checked_by: engine that runs the graphs node by node where this one does not.
        simulates: whether it computes something else than the quantized model, which can be trained with.
        packs_weights: whether it turns packed weights into constants while loading.
        clips_codes: whether a float ``Clip`` before a quantizer has to become one of codes behind it.
        max_distance: how far a value may lie from a tie, in steps, where its code differs from torch's.
        suppresses_equal: whether its NonMaxSuppression drops boxes whose overlap is exactly the threshold, too.
    """

    name: ClassVar[str]
    runs_here: ClassVar[bool] = True
    checked_by: ClassVar[str] = 'onnxruntime'
    simulates: ClassVar[bool] = False
    packs_weights: ClassVar[bool] = True
    clips_codes: ClassVar[bool] = False
    max_distance: ClassVar[float] = math.inf
    suppresses_equal: ClassVar[bool] = False

    def adapt(self, block: Block) -> Block:
        """The block as this engine can hold it."""
        return block

    def codes(
        self, x: Tensor, step: Tensor, zero: int, limits: tuple[int, int], kernel: Optional[str] = None
    ) -> Tensor:
        """Quantize as the engine rounds, down to the last bit.

        Args:
            x: float32, any shape.
            step: float32 scalar.
            zero: code of 0.
            limits: lowest and highest code.
            kernel: what computes the quantizer, see :meth:`quantizer_kernels`; None: the engine's usual one.

        Returns:
            Codes minus ``zero``, float32.
        """
        return quantize(x, step, (limits[0] - zero, limits[1] - zero))

    def encode(self, block: Block, x: Tensor, kernel: Optional[str] = None) -> Tensor:
        """Input codes of a block; the input itself where it is float."""
        return x if block.limits is None else self.codes(x, block.step, 0, block.limits, kernel)

    def compute(self, block: Block, x: Tensor, output: Requantization, kernel: Optional[str] = None) -> Tensor:
        """The output of a block, as the engine computes it."""
        total = block.multiply(self.encode(block, x, kernel))
        return total * block.per_filter(block.scale) + block.per_filter(block.offset)

    def stored(self, block: Block, codes: Tensor) -> np.ndarray:
        """Input codes as they stand in the graph."""
        return codes.to(self.code_type(block)).numpy()

    def code_type(self, block: Block) -> torch.dtype:
        """Type of the input codes in the graph."""
        return torch.int8 if block.limits[0] < 0 else torch.uint8

    def lower(self, g, x, block: Block, output: Requantization):
        """The nodes that compute the block from its float input ``x``; returns the float output."""
        weight = dequantized_weight(g, block, 1, self.packs_weights)
        x = self.lower_input(g, x, block)
        return float_layer(g, x, weight, constant(g, block.offset.float()), block)

    def lower_input(self, g, x, block: Block):
        """The nodes that bring the input to its grid: clipped in float, then quantized and dequantized."""
        if block.limits is None:
            return x
        step, (low, high), dtype = constant(g, block.step.float()), block.limits, self.code_type(block)
        zero, info = code(g, 0, dtype), torch.iinfo(dtype)
        if (low, high) != (info.min, info.max):
            x = g.op('Clip', x, constant(g, low * block.step.float()), constant(g, high * block.step.float()))
        return g.op('DequantizeLinear', g.op('QuantizeLinear', x, step, zero), step, zero)

    def requantize(self, reader: Reader) -> Mapping[str, Requantization]:
        """Name of a block -> what happens to its output; blocks that are missing stay as they are.

        Args:
            reader: of the graph that was written without any requantization.
        """
        return {}

    def depends_on_processor(self, block: Block, output: Requantization) -> bool:
        """Whether the block may give other sums on processors without VNNI."""
        return False

    def changes_output(self, block: Block, output: Requantization) -> bool:
        """Whether the output of a block is another one than the quantized model's."""
        return False

    def clipped(self, expected: Tensor, output: Requantization, trained: Optional[Grid]) -> Tensor:
        """An output as far as its grid reaches; one that was made from sample images has to hold all of theirs."""
        grid = output.reader or output.grid
        if grid is None or (output.own and trained is None):
            return expected
        return expected.clamp(grid.limits[0] * grid.scale, grid.limits[1] * grid.scale)

    def rounding(self, block: Block, output: Requantization) -> Tensor:
        """By how much the engine may change an output beside its layer's own rounding, broadcasts against it."""
        return torch.zeros(())

    def check_installed(self) -> None:
        """Raise where the package of the engine cannot be imported.

        Raises:
            ExportError: it is not installed.
        """
        try:
            importlib.import_module(self.name)
        except ImportError as error:
            raise ExportError(
                f'engine {self.name}: the package is not installed. Run `pip install {self.name}`'
            ) from error

    def open(self, path: Path, threads: int = 0, optimize: bool = True) -> Callable[..., list[np.ndarray]]:
        """Load a graph; see :func:`mmgdrq_runtime.engines.open_engine`."""
        return open_engine(self.name, path, threads, optimize)

    def quantizer_kernels(self, path: Path) -> Mapping[str, str]:
        """Name of a quantizer's output in the graph -> what computes it, for :meth:`codes`."""
        return {}

    def count_kernels(self, path: Path) -> tuple[int, int]:
        """Number of convolutions and matrix products that are computed in integers, and in float."""
        raise NotImplementedError(f'{self.name} does not run here')


_ENGINES: dict[str, Engine] = {}


def register_engine(engine: Engine) -> Engine:
    """Make an engine known by its name; an earlier one of that name is replaced."""
    _ENGINES[engine.name] = engine
    return engine


def engine_names() -> list[str]:
    """Names of all known engines."""
    return list(_ENGINES)


def find_engine(name: str) -> Engine:
    """The engine of a name.

    Raises:
        ExportError: there is none.
    """
    if name not in _ENGINES:
        guess = nearest(name, _ENGINES)
        hint = f" Did you mean '{guess}'?" if guess else ''
        raise ExportError(f'engine {name!r} is unknown.{hint} Expected one of {", ".join(_ENGINES)}')
    return _ENGINES[name]


def runner_of(engine: Engine) -> tuple[Engine, bool]:
    """The engine that runs the graphs of ``engine`` on this machine, and whether it is the engine itself.

    Raises:
        ExportError: its package is not installed.
    """
    if engine.runs_here:
        engine.check_installed()
        return engine, True
    other = find_engine(engine.checked_by)
    other.check_installed()
    return other, False
