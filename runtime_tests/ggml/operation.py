"""One ggml operation, or a few, outside any model, on the CPU backend."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.errors import OutOfResources
from runtime_tests.ggml import structs
from runtime_tests.ggml.matmul import Cpu

Build = Callable[..., int]  # (library's functions, context, inputs' tensors) -> the result's tensor
TYPES: dict[type, int] = {np.float32: structs.TYPE_F32, np.float16: structs.TYPE_F16, np.int32: structs.TYPE_I32}
AXES, TENSORS = 4, 16  # of a ggml tensor; that an operation here makes at most, inputs included


def compute(cpu: Cpu, build: Build, *inputs: NDArray[Any]) -> Floats:
    """What ``build`` computes from inputs of float32, float16 or int32, slowest axis first: float32, flat."""
    c = cpu.library.c
    size = TENSORS * c.ggml_tensor_overhead() + c.ggml_graph_overhead()
    context = c.ggml_init(structs.InitParams(size, None, True))
    buffer = None
    try:
        tensors = [c.ggml_new_tensor_4d(context, TYPES[x.dtype.type], *_sizes(x)) for x in inputs]
        result = build(c, context, *tensors)
        graph = c.ggml_new_graph(context)
        c.ggml_build_forward_expand(graph, result)
        buffer = c.ggml_backend_alloc_ctx_tensors_from_buft(context, cpu.buffer_types(repack=False)[0])
        if not buffer:
            raise OutOfResources(f"llama.cpp could not allocate {len(inputs)} small tensors", "free some memory")
        for x, tensor in zip(map(np.ascontiguousarray, inputs), tensors, strict=True):
            c.ggml_backend_tensor_set(tensor, x.ctypes.data, 0, x.nbytes)
        status = c.ggml_backend_graph_compute(cpu.backend, graph)
        if status:
            raise OutOfResources(f"a small operation of llama.cpp failed with status {status}", "free some memory")
        found = np.empty(c.ggml_nbytes(result) // 4, np.float32)
        c.ggml_backend_tensor_get(result, found.ctypes.data, 0, found.nbytes)
        return found
    finally:
        if buffer:
            c.ggml_backend_buffer_free(buffer)
        c.ggml_free(context)


def _sizes(x: NDArray[Any]) -> list[int]:
    """Fastest axis first, filled up with ones."""
    return [*reversed(x.shape), *[1] * (AXES - x.ndim)]
