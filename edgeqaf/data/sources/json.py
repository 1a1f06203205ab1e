"""A JSON file that holds one list of rows, as Alpaca and ShareGPT data are published."""

from collections.abc import Iterator, Sequence
from typing import Any

from edgeqaf.data.reading import Source, parsed, read_text
from edgeqaf.errors import Refused


def _read(path: str, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    try:
        rows = parsed(read_text(path))
    except ValueError as error:
        raise Refused(f"{path}: not JSON ({error})", "one list of objects; or one object a line, as .jsonl") from None
    if not isinstance(rows, list):
        raise Refused(
            f"{path} holds a JSON {type(rows).__name__}, not a list of rows",
            "write [row, row, ...]; or one object a line, as .jsonl",
        )
    yield from enumerate(rows, 1)


source = Source(_read, (".json",), "{}: row {}")
