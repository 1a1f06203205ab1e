"""Writing nodes: names that say which value of the traced program they compute, constants held once."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Emit:
    """Collects nodes and constants.

    Values made on the way to the value ``y`` are called ``y/1``, ``y/2``, ...: two runs give the same names.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], tuple[str, NDArray[Any]]] = {}
        self._scope, self._made = "", 0

    def scope(self, name: str) -> None:
        """Name what follows after ``name``."""
        self._scope, self._made = name, 0

    def __call__(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its value: ``out``, or a new one."""
        from onnx import helper

        self._made += 1
        name = f"{self._scope}/{self._made}"
        self.nodes.append(helper.make_node(op, list(inputs), [out or name], name=name, **attributes))
        return out or name

    def cast(self, x: str, dtype: str, out: str = "") -> str:
        """dtype: a name of onnx.TensorProto's."""
        from onnx import TensorProto

        return self("Cast", x, out=out, to=TensorProto.DataType.Value(dtype))

    def split(self, x: str, widths: str, outs: list[str]) -> None:
        """Cut the last axis into parts."""
        from onnx import helper

        self.nodes.append(helper.make_node("Split", [x, widths], outs, name=f"{self._scope}/split", axis=-1))

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """The name of a constant; equal ones are held once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        name, _ = self._constants.setdefault(key, (f"exact.{len(self._constants)}", array))
        return name

    def double(self, value: Any) -> str:
        return self.constant(value, np.float64)

    def integers(self, *values: int) -> str:
        """A list of axes or lengths."""
        return self.constant(values, np.int64)

    def initializers(self) -> Iterator[Any]:
        """Every constant, as onnx.TensorProto."""
        from onnx import numpy_helper

        for name, array in self._constants.values():
            yield numpy_helper.from_array(array, name)
