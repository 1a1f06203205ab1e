"""What goes into and comes out of each quantized matrix product while llama.cpp runs a model.

Before it computes a node of the graph, ggml's scheduler asks a callback whether it wants to see it; if so, everything
up to that node is computed, the callback is shown the result, and the run goes on (``cb_eval`` of
``llama_context_params``, ``ggml_backend_sched_eval_callback``). What is shown lies in llama.cpp's own memory and is
the next layer's by the time the callback has returned, so no more than one layer is ever held.

A tap stops the graph where it would not stop by itself, so it could change what is computed: operations that are
fused in one piece no longer are. Whoever taps compares the logits with those of an untapped run.
"""

import ctypes
from collections.abc import Callable, Collection
from ctypes import POINTER, Structure, c_char, c_int, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.errors import RuntimeAbsent
from runtime_tests.ggml import structs
from runtime_tests.ggml.library import Library

EvalCallback = ctypes.CFUNCTYPE(ctypes.c_bool, c_void_p, ctypes.c_bool, c_void_p)


class Tensor(Structure):
    """``struct ggml_tensor`` (ggml.h); `fits` shows that a library's is the same."""

    _fields_ = (
        ("type", c_int),
        ("buffer", c_void_p),
        ("ne", c_int64 * 4),
        ("nb", c_size_t * 4),
        ("op", c_int),
        ("op_params", c_int32 * 16),
        ("flags", c_int32),
        ("src", c_void_p * 10),
        ("view_src", c_void_p),
        ("view_offs", c_size_t),
        ("data", c_void_p),
        ("name", c_char * 64),
    )


@dataclass(frozen=True)
class Seen:
    """One product with a quantized matrix.

    name:   of the matrix in the file.
    type:   its ``enum ggml_type``; shape: [out, in].
    repacked: whether it lies in one of the CPU's extra buffers (`runtime_tests.ggml.matmul.Cpu.buffer_types`).
    x, y:   activations float32 [m, in] and outputs float32 [m, out]: copies.
    """

    name: str
    type: int
    shape: tuple[int, int]
    repacked: bool
    x: Floats
    y: Floats


class NodeTap:
    """Shows ``take`` each node that is ``wanted``, computed, while its `callback` is a context's ``cb_eval``.

    Raises RuntimeAbsent for a library whose tensors are laid out in an unknown way. An error that ``take`` raises stops
    the run; `reraise` hands it on, since no exception gets through llama.cpp.
    """

    def __init__(self, library: Library, wanted: Callable[[Tensor], bool], take: Callable[[Tensor], None]) -> None:
        if not fits(library):
            raise RuntimeAbsent(
                f"{library.version} lays out its tensors in a way that this version of edgeqaf does not know",
                "use the xllamacpp version that edgeqaf[llama] names, or a libllama folder of about that age",
            )
        self._wanted, self._take = wanted, take
        self._error: BaseException | None = None
        self.callback = EvalCallback(self._called)

    def reraise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _called(self, address: int, ask: bool, _: object) -> bool:
        try:
            node = Tensor.from_address(address)
            if not self._wanted(node):
                return not ask  # nothing to see here; go on
            if not ask:
                self._take(node)
            return True
        except BaseException as error:  # an interrupt too: it would be lost in the C code between
            self._error = self._error or error
            return False


class Tap(NodeTap):
    """Tells ``see`` of each product with a quantized matrix. extra: the buffer types in which one is repacked."""

    def __init__(self, library: Library, see: Callable[[Seen], None], extra: Collection[int] = ()) -> None:
        self._c, self._extra = library.c, extra
        super().__init__(library, self._is_quantized_product, lambda node: see(self._copied(node)))

    def _is_quantized_product(self, node: Tensor) -> bool:
        if self._c.ggml_op_name(node.op) != b"MUL_MAT":
            return False
        return bool(self._c.ggml_get_type_traits(Tensor.from_address(node.src[0]).type).contents.is_quantized)

    def _copied(self, node: Tensor) -> Seen:
        matrix, x = (Tensor.from_address(node.src[i]) for i in (0, 1))
        inputs, out = matrix.ne[0], matrix.ne[1]
        kind = self._c.ggml_backend_buffer_get_type(matrix.buffer)
        return Seen(
            matrix.name.decode(), matrix.type, (out, inputs), kind in self._extra,
            values(x).reshape(-1, inputs).copy(), values(node).reshape(-1, out).copy(),
        )  # fmt: skip


def fits(library: Library) -> bool:
    """Whether `Tensor` is the library's layout: a tensor and a product just made read as what they are."""
    c = library.c
    context = c.ggml_init(structs.InitParams(2 * c.ggml_tensor_overhead(), None, True))
    x = c.ggml_new_tensor_2d(context, structs.TYPE_F32, 64, 3)
    product = c.ggml_mul_mat(context, x, x)
    c.ggml_set_name(product, b"a product")
    made, source = Tensor.from_address(product), Tensor.from_address(x)
    found = (
        (source.type, [*source.ne], [*source.nb], source.data) == (0, [64, 3, 1, 1], [4, 256, 768, 768], None)
        and (c.ggml_op_name(made.op), [*made.ne], made.name) == (b"MUL_MAT", [3, 3, 1, 1], b"a product")
        and [*made.src] == [x, x, *[None] * 8]
    )
    c.ggml_free(context)
    return found


def values(tensor: Tensor) -> NDArray[np.float32]:
    """A float32 tensor in the CPU's memory: a view, slowest axis first."""
    shape, strides = tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
    extent = 4 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    memory = ctypes.cast(tensor.data, POINTER(ctypes.c_ubyte * extent)).contents
    return np.ndarray(shape, np.float32, memory, 0, strides)
