"""Device profiles: what a class of device offers, each figure with the source it was taken from.

A profile is one TOML file under ``devices/profiles``; the file's name is the profile's name. Beside
``title`` and ``kind`` every entry is a table ``{value, source, date}``: where the figure stands and
when that was published. A figure nobody publishes also has ``estimate``, the reason for the guess.
A file with an unknown, missing or malformed entry is refused whole.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from edgeqaf.errors import Refused, UsageError

FOLDER = Path(__file__).resolve().parent / "profiles"
DATE = re.compile(r"\d{4}(-\d\d){0,2}")
T = TypeVar("T")


@dataclass(frozen=True)
class Figure(Generic[T]):
    """A value, where it is published, when (``YYYY[-MM[-DD]]``), and why it is a guess if it is one."""

    value: T
    source: str
    date: str
    estimate: str = ""


@dataclass(frozen=True)
class DeviceProfile:
    """One class of device.

    memory_bytes:          all of it, shared by the system and every app.
    usable_share:          the part of it, in (0, 1], that one app may count on.
    cores, isa:            CPU cores of all kinds, and the instruction sets that all of them have.
    bandwidth_bytes_per_s: peak of the main memory.
    runtimes:              which inference engines run there.
    grids:                 recommended grids, best first.
    context_tokens:        the context to plan for when none is asked for.
    """

    name: str
    title: str
    kind: str
    memory_bytes: Figure[int]
    usable_share: Figure[float]
    cores: Figure[int]
    isa: Figure[tuple[str, ...]]
    bandwidth_bytes_per_s: Figure[int]
    runtimes: Figure[tuple[str, ...]]
    grids: Figure[tuple[str, ...]]
    context_tokens: Figure[int]

    @property
    def budget_bytes(self) -> int:
        """Memory that one app may count on."""
        return int(self.memory_bytes.value * self.usable_share.value)

    def figures(self) -> Iterator[tuple[str, Figure[Any]]]:
        """(name, figure) in the order of this class."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Figure):
                yield field.name, value


def names() -> list[str]:
    """Every profile, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find(name: str) -> DeviceProfile:
    """The profile ``name``; a unique beginning is enough.

    Raises UsageError for an unknown name, listing the known ones and the nearest spelling.
    """
    known = names()
    key = name.lower().replace("_", "-").replace(" ", "-")
    begun = [n for n in known if n.startswith(key)] if key else []
    if key not in known and len(begun) == 1:
        key = begun[0]
    if key not in known:
        raise UsageError(f"unknown device {name!r}", f"{_near(key, known)}known: {', '.join(known)}")
    return read(FOLDER / f"{key}.toml")


def read(path: Path) -> DeviceProfile:
    """Parse one profile; raises Refused with the file, the entry and what is wrong with it."""
    try:
        entries = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: {error}", "a profile is a TOML file; see docs/guides/devices.md") from None
    wanted = [field.name for field in fields(DeviceProfile) if field.name != "name"]
    _refuse_other_keys(str(path), entries, wanted, ())
    parsed = {key: _parse(f"{path}: {key}", key, entries[key]) for key in wanted}
    return DeviceProfile(name=path.stem, **parsed)


def _parse(where: str, key: str, entry: object) -> Any:
    if key in ("title", "kind"):
        return _text(where, entry)
    if not isinstance(entry, dict):
        raise Refused(f"{where} is {entry!r}, without a source", "write it as a table: value, source, date")
    _refuse_other_keys(where, entry, ("value", "source", "date"), ("estimate",))
    value = tuple(entry["value"]) if isinstance(entry["value"], list) else entry["value"]
    holds, must_be = CHECKS[key]
    if not holds(value):
        raise Refused(f"{where}.value is {entry['value']!r}", f"it must be {must_be}")
    date = _text(f"{where}.date", entry["date"])
    if not DATE.fullmatch(date):
        raise Refused(f"{where}.date is {date!r}", "write YYYY, YYYY-MM or YYYY-MM-DD, in quotes")
    source = _text(f"{where}.source", entry["source"])
    return Figure(value, source, date, _text(f"{where}.estimate", entry["estimate"]) if "estimate" in entry else "")


def _text(where: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Refused(f"{where} is {value!r}", "it must be text that is not empty")
    return value


def _refuse_other_keys(where: str, entry: Mapping[str, Any], wanted: Iterable[str], optional: Iterable[str]) -> None:
    known = [*wanted, *optional]
    for key in entry:
        if key not in known:
            raise Refused(f"{where}: unknown key {key!r}", f"{_near(key, known)}known: {', '.join(known)}")
    missing = [key for key in wanted if key not in entry]
    if missing:
        raise Refused(f"{where}: no {', '.join(missing)}", "every entry of a profile is required")


def _near(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]}? " if close else ""


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def _words(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(word, str) and word for word in value)


Check = tuple[Callable[[object], bool], str]
COUNT: Check = (_count, "a whole number above zero")
SHARE: Check = (_share, "a number above 0 and up to 1")
WORDS: Check = (_words, "a list of names, at least one")
# What the value of each entry must be.
CHECKS: dict[str, Check] = {
    "memory_bytes": COUNT,
    "usable_share": SHARE,
    "cores": COUNT,
    "isa": WORDS,
    "bandwidth_bytes_per_s": COUNT,
    "runtimes": WORDS,
    "grids": WORDS,
    "context_tokens": COUNT,
}
