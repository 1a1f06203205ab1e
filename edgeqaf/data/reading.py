"""Which source a name means, and its rows: every one in a normal shape, or refused by its place."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqaf import plugins
from edgeqaf.data.rows import Row, normal
from edgeqaf.digest import file_sha256
from edgeqaf.errors import Refused, UsageError

HUB = "hf:"
REMEDY = (
    'a row is {"prompt", "completion"}, {"messages"}, {"conversations"}, {"instruction", "output"} or {"text"}; '
    "--columns names two other keys; see docs/guides/data.md"
)
# org/name[:config][:split] of the Hugging Face Hub, as a bare name
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]*){0,2}")


@dataclass(frozen=True)
class Source:
    """One kind of source.

    read:     (name, columns) -> (number, raw row) of every row; may raise Refused.
    suffixes: of the files it reads, lower case; none for what is no file.
    place:    how the number of a row is written behind the name: a line, or a row.
    """

    read: Callable[[str, Sequence[str]], Iterator[tuple[int, Any]]]
    suffixes: tuple[str, ...] = ()
    place: str = "{}:{}"


def read_rows(source: Path | str, columns: Sequence[str] = ()) -> list[Row]:
    """The rows of a data file or dataset, each validated; raises Refused with file, line and reason.

    columns: two keys to take as prompt and completion, instead of those that `edgeqaf.data.rows` knows.
    """
    if columns and len(set(columns)) != 2:
        raise UsageError(f"--columns {','.join(columns)} names no prompt and completion", "--columns PROMPT,COMPLETION")
    name, kind = str(source), _find(str(source))
    rows = []
    for number, raw in kind.read(name, columns):
        try:
            rows.append(normal(raw, columns))
        except ValueError as fault:
            raise Refused(f"{kind.place.format(name, number)}: {fault}", REMEDY) from None
    if not rows:
        raise Refused(f"{name} holds no rows", "give a data file with at least one row")
    return rows


def digest(source: Path | str, rows: Sequence[Row]) -> str:
    """SHA-256 of a data file; of a dataset, which is no file, that of its rows as JSON lines."""
    if Path(source).is_file():
        return file_sha256(Path(source))
    sha = hashlib.sha256()
    for row in rows:
        sha.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return sha.hexdigest()


def read_text(path: str) -> str:
    """The text of a file, without a byte order mark; Refused where it is not UTF-8."""
    try:
        return Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not UTF-8 text (byte {error.start})", "convert the file to UTF-8") from None


def parsed(text: str) -> Any:
    """``text`` as JSON; ValueError says what is wrong with it, be it half a surrogate pair, which is no text."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(error) from None
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _find(name: str) -> Source:
    """The source that ``name`` means: a path wins over a dataset of the same name."""
    sources: dict[str, Source] = {kind: plugins.find("sources", kind) for kind in plugins.names("sources")}
    by_suffix = {suffix: source for source in sources.values() for suffix in source.suffixes}
    path = Path(name)
    suffix = path.suffix.lower()
    if name.startswith(HUB) or (not path.exists() and suffix not in by_suffix and _REPOSITORY.fullmatch(name)):
        return sources["hub"]
    if not path.is_file():
        remedy = f"name a file in it, or {HUB}{name} to load it with datasets" if path.is_dir() else "check the path"
        raise Refused(f"{name} {'is a folder' if path.is_dir() else 'does not exist'}", remedy)
    if suffix not in by_suffix:
        raise UsageError(f"{name}: unknown kind of data file {suffix!r}", f"use one of {', '.join(sorted(by_suffix))}")
    return by_suffix[suffix]
