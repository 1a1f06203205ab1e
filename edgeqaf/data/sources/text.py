"""Plain text: documents separated by lines ``<|endoftext|>``."""

from collections.abc import Iterator, Sequence
from typing import Any

from edgeqaf.data.reading import Source, read_text
from edgeqaf.errors import UsageError

SEPARATOR = "<|endoftext|>"


def _read(path: str, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    if columns:
        raise UsageError(f"{path} is plain text; it has no columns {', '.join(columns)}", "drop --columns")
    documents = read_text(path).split(f"\n{SEPARATOR}")
    yield from ((n, {"text": text.strip("\n")}) for n, text in enumerate(documents, 1) if text.strip())


source = Source(_read, (".txt",), "{}: document {}")
