"""A library's machine code, to be changed: functions found in the symbol tables of an ELF file, instructions by bytes.

Instructions are matched where they may begin at any byte, so a match can be the middle of another. That does no harm
here: whatever is changed, the library computes something else or dies, and either must be noticed.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SYMBOLS = (2, 11)  # section types SHT_SYMTAB and SHT_DYNSYM
FUNCTION = 2  # STT_FUNC
MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian


@dataclass(frozen=True)
class Section:
    """type, address, offset, size and link as the section header has them."""

    name: str
    type: int
    address: int
    offset: int
    size: int
    link: int


class Code:
    """The bytes of a shared library (ELF, 64 bits), edited in memory until `write`."""

    def __init__(self, path: Path) -> None:
        self.raw = bytearray(path.read_bytes())

    @property
    def understood(self) -> bool:
        """Whether it is an ELF file of the kind that is read here."""
        return self.raw[: len(MAGIC)] == MAGIC

    def write(self, path: Path) -> None:
        path.write_bytes(self.raw)
        path.chmod(0o755)

    def replace(self, functions: str, instruction: bytes, change: Callable[[bytearray], None]) -> int:
        """Change every match of ``instruction`` within functions whose names match; returns how many there were."""
        count = 0
        for start, size in self._functions(functions):
            for found in re.finditer(instruction, self.raw[start : start + size], re.DOTALL):
                piece = bytearray(found.group())
                change(piece)
                self.raw[start + found.start() : start + found.end()] = piece
                count += 1
        return count

    def constant(self, old: bytes, new: bytes) -> int:
        """Replace a constant wherever it is aligned to its size in read-only data; returns how many there were."""
        count = 0
        for section in self._sections:
            if section.name.startswith(".rodata"):
                end, at = section.offset + section.size, self.raw.find(old, section.offset)
                while 0 <= at < end:
                    if at % len(old) == 0:
                        self.raw[at : at + len(old)] = new
                        count += 1
                    at = self.raw.find(old, at + 1)
        return count

    def _functions(self, pattern: str) -> Iterator[tuple[int, int]]:
        """(offset in the file, size) of the functions whose names match, each once."""
        wanted = re.compile(pattern)
        yield from sorted({place for name, place in self._symbols if wanted.search(name)})

    @cached_property
    def _sections(self) -> list[Section]:
        start, size, count, names = struct.unpack_from("<Q", self.raw, 0x28) + struct.unpack_from("<3H", self.raw, 0x3A)
        headers = [struct.unpack_from("<IIQQQQI", self.raw, start + i * size) for i in range(count)]
        texts = headers[names][4]
        return [Section(self._text(texts + h[0]), h[1], h[3], h[4], h[5], h[6]) for h in headers]

    @cached_property
    def _symbols(self) -> list[tuple[str, tuple[int, int]]]:
        found = []
        for table in self._sections:
            if table.type not in SYMBOLS:
                continue
            texts = self._sections[table.link].offset
            for name, info, _, index, value, size in struct.iter_unpack(
                "<IBBHQQ", self.raw[table.offset : table.offset + table.size]
            ):
                if info & 15 == FUNCTION and size and 0 < index < len(self._sections):
                    home = self._sections[index]
                    found.append((self._text(texts + name), (value - home.address + home.offset, size)))
        return found

    def _text(self, at: int) -> str:
        return self.raw[at : self.raw.index(0, at)].decode("ascii", "replace")
