"""The C library's functions of float32, the very ones that llama.cpp calls: they round in ways of their own."""

from typing import Any

from numba.core import types

_ONE = types.float32(types.float32)

expf: Any = types.ExternalFunction("expf", _ONE)
cosf: Any = types.ExternalFunction("cosf", _ONE)
sinf: Any = types.ExternalFunction("sinf", _ONE)
powf: Any = types.ExternalFunction("powf", types.float32(types.float32, types.float32))
