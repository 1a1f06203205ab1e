"""One ggml matrix product, outside any model: ``ggml_mul_mat`` on the CPU's backend, or a GPU's.

On the CPU the matrix lies in one of two places, and its place chooses the kernel. In the plain buffer it
keeps the file's layout and meets the dot-product kernels; in one of the CPU's extra buffers
(repacked blocks, AMX tiles) it is rearranged on upload and meets the matrix kernels, which is what
llama.cpp prefers by default.
"""

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.errors import OutOfResources, RuntimeAbsent
from runtime_tests.ggml import structs
from runtime_tests.ggml.file import FileTensor
from runtime_tests.ggml.library import Library

ROWS = 512  # rows of activations per graph: bounds the memory, 22 MB at 11008 inputs


class Cpu:
    """llama.cpp's CPU backend with a fixed number of threads."""

    kind = "CPU"

    def __init__(self, library: Library, threads: int) -> None:
        self.library, self.device, self.threads = library, library.device, threads
        self.backend = library.c.ggml_backend_dev_init(self.device, None)
        set_threads = library.proc("ggml_backend_set_n_threads", structs.SetThreads)
        if set_threads:
            set_threads(self.backend, threads)

    def close(self) -> None:
        self.library.c.ggml_backend_free(self.backend)

    def buffer_types(self, repack: bool) -> list[int]:
        """The extra buffer types in llama.cpp's order of preference, or the plain one alone."""
        if not repack:
            return [self.library.c.ggml_backend_dev_buffer_type(self.library.device)]
        extra = self.library.proc("ggml_backend_dev_get_extra_bufts", structs.ExtraBufferTypes)
        found: list[int] = []
        for buffer_type in extra(self.library.device) if extra else ():
            if not buffer_type:
                break
            found.append(buffer_type)
        return found


class Gpu:
    """The GPU backend of a llama.cpp: matrices lie in the GPU's memory, in one layout."""

    kind = "GPU"

    def __init__(self, library: Library) -> None:
        assert library.gpu is not None
        self.library, self.device = library, library.gpu
        self.backend = library.c.ggml_backend_dev_init(self.device, None)

    def close(self) -> None:
        self.library.c.ggml_backend_free(self.backend)

    def buffer_types(self, repack: bool) -> list[int]:
        """The GPU's own, and no others."""
        return [] if repack else [self.library.c.ggml_backend_dev_buffer_type(self.device)]


class Matrix:
    """A stored matrix in a backend buffer, ready to be multiplied with.

    Raises RuntimeAbsent if ``repack`` is asked for and no extra buffer takes this type and shape, or if a GPU has no
    kernel for them.
    """

    def __init__(self, cpu: Cpu | Gpu, tensor: FileTensor, repack: bool) -> None:
        self._cpu, self._c = cpu, cpu.library.c
        self._out, self._in = tensor.shape
        self._context: int | None = None
        self._buffer: int | None = None
        for buffer_type in cpu.buffer_types(repack):
            if self._place(tensor, buffer_type):
                # Only now: writing into an extra buffer without a layout for the type is a crash.
                self._c.ggml_backend_tensor_set(self._weight, tensor.data.ctypes.data, 0, tensor.data.size)
                return
            self.close()
        what = "repacked layout" if repack else "kernel"
        raise RuntimeAbsent(
            f"llama.cpp has no {what} for {tensor.type_name} [{self._out}, {self._in}] on this {cpu.kind} "
            f"({cpu.library.version})",
            "the plain configuration covers this tensor" if repack else "choose another grid for this device",
        )

    def close(self) -> None:
        if self._buffer:
            self._c.ggml_backend_buffer_free(self._buffer)
        if self._context:
            self._c.ggml_free(self._context)
        self._context = self._buffer = None

    def multiply(self, x: Floats) -> Floats:
        """x [m, in] -> [m, out], outputs in the file's row order."""
        y = np.empty((len(x), self._out), np.float32)
        for start in range(0, len(x), ROWS):
            self._multiply(np.ascontiguousarray(x[start : start + ROWS], np.float32), y[start : start + ROWS])
        return y

    def _place(self, tensor: FileTensor, buffer_type: int) -> bool:
        """Allocate the matrix in ``buffer_type``; whether the CPU can multiply with it there."""
        self._context = self._arena(tensors=1)
        self._weight = self._c.ggml_new_tensor_2d(self._context, tensor.type, self._in, self._out)
        self._buffer = self._allocated(self._context, buffer_type)
        probe = self._arena(tensors=2)
        x = self._c.ggml_new_tensor_2d(probe, structs.TYPE_F32, self._in, 1)
        product = self._c.ggml_mul_mat(probe, self._weight, x)
        supported = self._c.ggml_backend_dev_supports_op(self._cpu.device, product)
        self._c.ggml_free(probe)
        return bool(supported)

    def _multiply(self, x: Floats, y: Floats) -> None:
        context = self._arena(tensors=2, graph=True)
        buffer = None
        try:
            x_tensor = self._c.ggml_new_tensor_2d(context, structs.TYPE_F32, self._in, len(x))
            y_tensor = self._c.ggml_mul_mat(context, self._weight, x_tensor)
            graph = self._c.ggml_new_graph(context)
            self._c.ggml_build_forward_expand(graph, y_tensor)
            buffer = self._allocated(context, self._cpu.buffer_types(repack=False)[0])
            self._c.ggml_backend_tensor_set(x_tensor, x.ctypes.data, 0, x.nbytes)
            status = self._c.ggml_backend_graph_compute(self._cpu.backend, graph)
            if status:
                raise OutOfResources(f"llama.cpp's matrix product failed with status {status}", "free some memory")
            self._c.ggml_backend_tensor_get(y_tensor, y.ctypes.data, 0, y.nbytes)
        finally:
            if buffer:
                self._c.ggml_backend_buffer_free(buffer)
            self._c.ggml_free(context)

    def _arena(self, tensors: int, graph: bool = False) -> int:
        """A ggml context with room for the metadata of that many tensors."""
        size = tensors * self._c.ggml_tensor_overhead() + (self._c.ggml_graph_overhead() if graph else 0)
        context: int = self._c.ggml_init(structs.InitParams(size, None, True))
        return context

    def _allocated(self, context: int, buffer_type: int) -> int:
        buffer: int | None = self._c.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if not buffer:
            raise OutOfResources(f"llama.cpp could not allocate a [{self._out}, {self._in}] matrix", "free some memory")
        return buffer
