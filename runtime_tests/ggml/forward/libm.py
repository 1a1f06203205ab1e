"""The C library's functions of float32, the very ones that llama.cpp calls: they round in ways of their own."""

from numba.core import types

_ONE = types.float32(types.float32)

expf = types.ExternalFunction("expf", _ONE)
cosf = types.ExternalFunction("cosf", _ONE)
sinf = types.ExternalFunction("sinf", _ONE)
powf = types.ExternalFunction("powf", types.float32(types.float32, types.float32))
