"""JSON Lines: each line one row."""

from collections.abc import Iterator, Sequence
from typing import Any

from edgeqaf.data.reading import Source, parsed, read_text
from edgeqaf.errors import Refused


def _read(path: str, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):  # splitlines would also cut at U+2028
        if not line.strip():
            continue
        try:
            yield number, parsed(line)
        except ValueError as error:
            raise Refused(f"{path}:{number}: not JSON ({error})", "each line must be one JSON object") from None


source = Source(_read, (".jsonl", ".ndjson"))
