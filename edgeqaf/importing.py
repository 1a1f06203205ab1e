"""What importers speak of: a layer as another tool quantized it, and the arrays that a checkpoint stores of it.

Every format that `edgeqaf.importers` reads means ``(code - zero) * scale``; they differ in how they lay that out in
32-bit words. `edgeqaf.prequantized` puts a `Layer` on a grid.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeqaf.companions import QUANTIZATION
from edgeqaf.errors import Refused
from edgeqaf.packing import unpack
from edgeqaf.shards import Shards
from edgeqaf.tensorfile import Array

INTEGERS, SCALES = ("I32",), ("F16", "BF16", "F32")
DAMAGED = "the checkpoint is damaged; fetch it again"
ANEW = "quantize the float model anew: edgeqaf quantize FLOAT_MODEL -o base"
Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class Layer:
    """A quantized linear layer, the checkpoint's layout undone: ``(codes - zero) * scale``.

    shape: [out, in].
    bits:  of a code, 4 or 8.
    group: consecutive inputs that share a scale; the last group may be shorter.
    zero:  uint8 [out, groups], the codes that mean zero.
    codes: reads the codes, uint8 [out, in].
    scale: reads the scales, float16, bfloat16 or float32 [out, groups].
    """

    shape: tuple[int, int]
    bits: int
    group: int
    zero: Codes
    codes: Callable[[], Codes]
    scale: Callable[[], Array]


@dataclass(frozen=True)
class Arrays:
    """What a checkpoint stores of one layer; ``name`` is the layer's, as in ``model.layers.0.mlp.up_proj``."""

    stored: Shards
    name: str

    def __contains__(self, part: str) -> bool:
        return f"{self.name}.{part}" in self.stored

    def matrix(self, part: str) -> tuple[int, int]:
        """The shape of an array that must be a matrix."""
        shape = self.stored.shape(f"{self.name}.{part}") if part in self else ()
        if len(shape) != 2 or not all(shape):
            raise Refused(f"{self.name}.{part} has shape {list(shape)}, not that of a matrix", DAMAGED)
        return shape[0], shape[1]

    def expect(self, part: str, types: Collection[str], shape: tuple[int, ...]) -> Callable[[], Array]:
        """What reads an array; refused now unless it is there, of one of the types and of this shape."""
        name = f"{self.name}.{part}"
        if part not in self:
            raise Refused(f"{name} is not there", "the checkpoint is incomplete; fetch it again")
        dtype, found = self.stored.dtype(name), self.stored.shape(name)
        if dtype not in types or found != shape:
            raise Refused(f"{name} is {dtype} {list(found)}, not {' or '.join(types)} {list(shape)}", DAMAGED)
        return lambda: self.stored[name]

    def require_order(self, part: str, inputs: int, group: int, *, act_order: bool) -> None:
        """Refuse a layer whose groups are not consecutive inputs.

        part: the array that says the group of each input, I32 [in]; it may be missing where act_order is not set.
        """
        if part not in self and not act_order:
            return
        found = self.expect(part, INTEGERS, (inputs,))()
        wrong = np.nonzero(found != np.arange(inputs) // group)[0]
        if wrong.size:
            i = int(wrong[0])
            raise Refused(
                f"{self.name}.{part}[{i}] = {found[i]}, not {i // group}: quantized in the order of activations "
                f"(act-order), its groups of {group} are not consecutive inputs, and no GGUF or ONNX file can say so",
                "take a checkpoint quantized without it (desc_act: false), or " + ANEW,
            )

    def require_middle(self, zero: Codes, bits: int, key: str, remedy: str = DAMAGED) -> None:
        """Refuse zeros [out, groups] other than the middle code in a checkpoint that says it is symmetric."""
        wrong = np.argwhere(zero != 1 << (bits - 1))
        if wrong.size:
            row, column = map(int, wrong[0])
            raise Refused(
                f"{self.name}: the zero of row {row}, group {column} is {zero[row, column]}, "
                f"and {QUANTIZATION} says {key}: {1 << (bits - 1)}",
                remedy,
            )


class Importer(Protocol):
    """How one quant_method stores a layer. A module exposes what makes it of a quantization_config as ``importer``.

    Making one raises Refused for a setting that it does not know how to read.
    """

    parts: ClassVar[tuple[str, ...]]
    """How the names of a layer's arrays may end; the first is there for every quantized layer."""

    def layer(self, arrays: Arrays) -> Layer:
        """One layer, its shapes, order and zeros checked; raises Refused."""


def setting(config: Mapping[str, Any], key: str, default: Any, known: Collection[Any]) -> Any:
    """An entry of a quantization_config, refused unless it is one of the known values."""
    value = config.get(key, default)
    if not any(type(value) is type(one) and value == one for one in known):
        raise Refused(
            f"{QUANTIZATION}: {key} is {value!r}; imported: {', '.join(repr(one) for one in known)}",
            ANEW,
        )
    return value


def group_size(value: Any) -> int:
    """The group_size of a quantization_config: -1 for a whole row, or a number of inputs."""
    if type(value) is not int or value < -1 or value == 0:
        raise Refused(f"{QUANTIZATION}: group_size is {value!r}, not -1 or a number of inputs", DAMAGED)
    return value


def fields(words: Array, bits: int) -> Codes:
    """The unsigned integers in 32-bit words, those in lower bits first: int32 [...] -> uint8 [..., 32 / bits]."""
    integers = unpack(np.ascontiguousarray(words, "<i4").view(np.uint8), bits)
    return integers.reshape(*words.shape, 32 // bits)
