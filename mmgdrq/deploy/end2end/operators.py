"""Append ONNX operators to a graph."""

from collections.abc import Sequence
from typing import Any, Optional

import numpy as np


class Operators:
    """The nodes and constants that are put around a graph; a call is one node.

    Args:
        prefix: of the names of its tensors.
        suppresses_equal: whether NonMaxSuppression of the engine drops boxes whose overlap is exactly the threshold.

    Attributes:
        nodes: in the order in which they run.
        constants: their tensors.
    """

    def __init__(self, prefix: str, suppresses_equal: bool = False) -> None:
        self.prefix, self.suppresses_equal = prefix, suppresses_equal
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, operator: str, *inputs: Any, output: Optional[str] = None, **attributes: Any) -> str:
        """Append one node.

        Args:
            operator: name of the ONNX operator.
            *inputs: names of tensors, or values that become constants.
            output: name of the result; by default one of its own.
            **attributes: of the operator.

        Returns:
            Name of the first result.
        """
        return self.several(operator, 1, *inputs, outputs=[output] if output else None, **attributes)[0]

    def several(
        self, operator: str, count: int, *inputs: Any, outputs: Optional[list[str]] = None, **attributes: Any
    ) -> list[str]:
        """Append one node with several results."""
        from onnx import helper

        names = outputs or [f'{self.prefix}_{len(self.nodes)}_{i}' for i in range(count)]
        given = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(helper.make_node(operator, given, names, **attributes))
        return names

    def constant(self, value: Any) -> str:
        """Add a constant: floats become float32, integers int64."""
        from onnx import numpy_helper

        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype.kind == 'f' else array.astype(np.int64)
        name = f'{self.prefix}_constant_{len(self.constants)}'
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def reshape(self, x: str, *shape: int) -> str:
        """Give a tensor another shape; 0 keeps a size, -1 is what is left."""
        return self('Reshape', x, list(shape))

    def size(self, x: str, axis: int) -> str:
        """Return the size of a tensor along an axis, of shape (1,)."""
        return self('Gather', self('Shape', x), [axis])

    def cast(self, x: str, kind: str) -> str:
        """Convert to ``'FLOAT'`` or ``'INT64'``."""
        from onnx import TensorProto

        return self('Cast', x, to=getattr(TensorProto, kind))

    def columns(self, x: str, begin: int, end: int) -> str:
        """Cut columns out of a table."""
        return self('Slice', x, [begin], [end], [1])

    def join(self, values: Sequence[str], axis: int) -> str:
        """Concatenate."""
        return self('Concat', *values, axis=axis)
