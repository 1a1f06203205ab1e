"""The safetensors container: read strictly and in parts, written one tensor at a time.

    u64, little endian: length of the header
    header: JSON, {name: {"dtype", "shape", "data_offsets": [begin, end]}}, and "__metadata__", padded with spaces
    data: the tensors, one after the other without gaps, each at a multiple of its item's size

The library that defines the format maps a file into memory and writes what is in memory at once. A file that
somebody else may truncate must not be mapped (reading beyond its end kills the process), mapped pages count as
memory in use, and a model need not fit into memory to be converted. So files are read here by offset, each
tensor once it is asked for, and nothing is allocated before the header has been checked against the file's size.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgeqaf.errors import Refused
from edgeqaf.untrusted import Seen, open_regular

DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_HEADER, MOST_TENSORS, ALIGNMENT, METADATA = 10**8, 2**20, 8, "__metadata__"
CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
AGAIN = "the file is missing, truncated or corrupt; fetch or make it again"
Array = NDArray[Any]


class TensorFile(Mapping[str, Array]):
    """A file's tensors by name, each read when it is asked for.

    Raises Refused for anything but a whole, well-formed file: a header that is no JSON or names a tensor twice,
    types that are not in `DTYPES`, shapes that do not match their bytes, gaps, overlaps, bytes left over.
    """

    def __init__(self, path: Path) -> None:
        with open_regular(path) as file:
            self._seen = Seen.of(file, path)
        self._start, header = self._header()
        self._tensors = {name: self._described(name, entry) for name, entry in header.items() if name != METADATA}
        end = 0
        for name, (_, _, begin, stop) in sorted(self._tensors.items(), key=lambda item: item[1][2:]):
            if begin != end:
                raise self._refusal(f"{name} begins at {begin}, the one before it ends at {end}")
            end = stop
        if self._start + end != self._seen.size:
            raise self._refusal(f"{self._seen.size} bytes long, but its tensors end at byte {self._start + end}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # the mixin's would read the tensor

    def __getitem__(self, name: str) -> Array:
        dtype, shape, begin, end = self._tensors[name]
        return self._seen.read(self._start + begin, end - begin).view(dtype).reshape(shape)

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Rows [start, stop) of a tensor; of a vector, its elements, of which a number is one."""
        dtype, shape, begin, _ = self._tensors[name]
        count, *others = shape or (1,)
        if not 0 <= start <= stop <= count:
            raise self._refusal(f"{name} has {count} rows, not {start} to {stop}")
        each = prod(others) * dtype.itemsize
        data = self._seen.read(self._start + begin + start * each, (stop - start) * each)
        return data.view(dtype).reshape(stop - start, *others)

    def part(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a tensor's; refuses to go beyond it."""
        _, _, begin, end = self._tensors[name]
        if not 0 <= start <= stop <= end - begin:
            raise self._refusal(f"{name} has {end - begin} bytes, not {start} to {stop}")
        return self._seen.read(self._start + begin + start, stop - start).tobytes()

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._seen.path

    def dtype(self, name: str) -> str:
        """The type of a tensor, as the format calls it."""
        return NAMES[self._tensors[name][0]]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read for it."""
        return self._tensors[name][1]

    def _refusal(self, cause: str) -> Refused:
        return Refused(f"{self._seen.path}: {cause}", AGAIN)

    def _header(self) -> tuple[int, dict[str, Any]]:
        """Where the data begins, and the parsed header."""
        length = int.from_bytes(self._seen.read(0, 8).tobytes(), "little") if self._seen.size >= 8 else 0
        if not 2 <= length <= min(self._seen.size - 8, MOST_HEADER):
            raise self._refusal(f"its header would take {length} bytes, the file has {self._seen.size}")
        try:
            header = json.loads(self._seen.read(8, length).tobytes().decode("utf-8"), object_pairs_hook=self._once)
        except ValueError as error:
            raise self._refusal(f"its header is no JSON: {error}") from None
        except RecursionError:
            raise self._refusal("its header is nested too deeply") from None
        if not isinstance(header, dict) or len(header) > MOST_TENSORS:
            raise self._refusal(f"its header is not a list of at most {MOST_TENSORS} tensors")
        return 8 + length, header

    def _once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise self._refusal(f"its header says {twice[:64]!r} twice")
        return found

    def _described(self, name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
        """(dtype, shape, begin, end) of one tensor."""
        fields = entry if isinstance(entry, dict) else {}
        kind, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
        if CONTROLS.search(name) or kind not in DTYPES:
            raise self._refusal(f"{name[:64]!r} is of type {str(kind)[:16]!r}; known: {', '.join(DTYPES)}")
        if shape is None or offsets is None or not (_counts(shape) and _counts(offsets) and len(offsets) == 2):
            raise self._refusal(f"{name} has shape {str(shape)[:64]} at {str(offsets)[:64]}")
        begin, end = offsets
        if end - begin != prod(shape) * DTYPES[kind].itemsize or self._start + end > self._seen.size:
            raise self._refusal(f"{name}, {kind} {shape}, does not fit bytes {begin} to {end} of {self._seen.size}")
        return DTYPES[kind], tuple(shape), begin, end


class TensorWriter:
    """Writes a file tensor by tensor; a context manager, whose end completes the file.

    shapes: name -> shape of every tensor that will be added, in any order. The header's room follows from them
    alone, so it can be written last. Arrays whose size would leave the next one unaligned wait for the end.
    at_most: the shapes are the largest that can be, and a tensor may be left out.
    """

    def __init__(
        self, path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str], *, at_most: bool = False
    ) -> None:
        self._at_most = at_most
        self._metadata, self._shapes = dict(metadata), dict(shapes)
        most = {name: self._entry("BOOL", shape, 10**18, 10**18) for name, shape in shapes.items()}
        self._room = _padded(len(_json({METADATA: self._metadata, **most})))
        self._file = open(path, "xb")  # noqa: SIM115  closed by __exit__
        self._file.write(bytes(8 + self._room))
        self._waiting: list[tuple[str, Array]] = []
        self._entries: dict[str, dict[str, Any]] = {}
        self._end = 0

    def __enter__(self) -> "TensorWriter":
        return self

    def add(self, name: str, array: Array) -> None:
        """Write one tensor, of the shape that was announced."""
        most = self._shapes[name]
        if array.shape != most and not (self._at_most and all(n <= m for n, m in zip(array.shape, most, strict=True))):
            raise ValueError(f"{name} has shape {array.shape}, {most} was announced")
        if array.nbytes % ALIGNMENT:
            self._waiting.append((name, array))
        else:
            self._write(name, array)

    def add_runs(self, name: str, dtype: np.dtype[Any], runs: Iterable[Array]) -> None:
        """Write one tensor of the shape that was announced, its rows as they come."""
        shape = self._shapes[name]
        size = prod(shape) * dtype.itemsize
        if size % ALIGNMENT:
            self.add(name, np.concatenate(list(runs)).reshape(shape))
            return
        self._entries[name] = self._entry(NAMES[dtype], shape, self._end, self._end + size)
        begun = self._file.tell()
        for run in runs:
            self._file.write(np.ascontiguousarray(run, dtype).reshape(-1).view(np.uint8).data)
        self._end += size
        if self._file.tell() - begun != size:
            raise ValueError(f"{name} took {self._file.tell() - begun} bytes, {size} were announced")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is not None:
                return
            for name, array in sorted(self._waiting, key=lambda item: (-item[1].itemsize, item[0])):
                self._write(name, array)
            header = _json({METADATA: self._metadata, **dict(sorted(self._entries.items()))})
            self._file.seek(0)
            self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))

    def _write(self, name: str, array: Array) -> None:
        self._entries[name] = self._entry(NAMES[array.dtype], array.shape, self._end, self._end + array.nbytes)
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._end += array.nbytes

    def _entry(self, dtype: str, shape: tuple[int, ...], begin: int, end: int) -> dict[str, Any]:
        return {"dtype": dtype, "shape": [int(n) for n in shape], "data_offsets": [begin, end]}


def _counts(values: Any) -> bool:
    """Whether it is a list of integers that a size can be."""
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**63 for n in values)


def _json(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
