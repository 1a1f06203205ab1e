"""Numbers out of files that nobody has checked: a config.json, or the metadata of a GGUF file."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeqaf.errors import Refused
from exporters.gguf.container import Type, Value

Config = Mapping[str, Any]
Metadata = Mapping[str, Value]
AGAIN = "the file is damaged or of an unknown kind; export or fetch it again"
WHOLE = (Type.UINT8, Type.INT8, Type.UINT16, Type.INT16, Type.UINT32, Type.INT32, Type.UINT64, Type.INT64)


def size(config: Config, key: str) -> int:
    """A positive integer of config.json; Refused for anything else."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise Refused(f"config.json: {key} is {value!r}, not a positive integer", "fetch the model again")
    return value


def positive(config: Config, key: str) -> float:
    """A positive number of config.json; Refused for anything else."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise Refused(f"config.json: {key} is {value!r}, not a positive number", "fetch the model again")
    return float(value)


def float32(config: Config, key: str) -> Value:
    """A positive number of config.json as metadata."""
    return Value(Type.FLOAT32, positive(config, key))


def count_in(metadata: Metadata, key: str, default: int | None = None) -> int:
    """A positive integer of a file's metadata; ``default`` where there is none. Raises Refused."""
    value = metadata.get(key)
    if value is None and default is not None:
        return default
    if value is None or value.type not in WHOLE or not isinstance(value.data, int) or not 0 < value.data < 2**32:
        raise Refused(f"metadata {key} is missing or not a positive integer", AGAIN)
    return value.data


def number_in(metadata: Metadata, key: str, default: float | None = None) -> float:
    """A positive float32 of a file's metadata, as the shortest decimal that means it. Raises Refused."""
    value = metadata.get(key)
    if value is None and default is not None:
        return default
    if value is None or value.type is not Type.FLOAT32 or not isinstance(value.data, float) or not value.data > 0:
        raise Refused(f"metadata {key} is missing or not a positive float32", AGAIN)
    return shortest(value.data)


def shortest(value: float | np.floating[Any]) -> float:
    """The number of fewest digits that is ``value`` in float32: 1e-06 rather than 9.999999974752427e-07."""
    return float(str(np.float32(value)))


def text_in(metadata: Metadata, key: str, default: str) -> str:
    """A string of a file's metadata; ``default`` where there is none. Raises Refused."""
    value = metadata.get(key)
    if value is None:
        return default
    if value.type is not Type.STRING or not isinstance(value.data, bytes):
        raise Refused(f"metadata {key} is not a string", AGAIN)
    return value.data.decode("utf-8", "replace")
