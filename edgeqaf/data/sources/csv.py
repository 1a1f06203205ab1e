"""CSV and TSV with a header.

The first two columns are prompt and completion, unless two are named, or the header has the keys of a
shape of its own (``prompt`` and ``completion``, ``instruction`` and ``output``, ``text`` alone).
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeqaf.data.reading import Source, read_text
from edgeqaf.errors import Refused


def _read(path: str, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    delimiter = "\t" if path.lower().endswith(".tsv") else ","
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True, delimiter=delimiter)
    try:
        header = list(reader.fieldnames or [])
        chosen = _chosen(path, header, columns)
        for row in reader:
            if None in row:
                raise Refused(
                    f"{path}:{reader.line_num}: more fields than the header's {len(header)}",
                    'write a field that holds a comma in double quotes: "like, this"',
                )
            yield reader.line_num, _picked(path, reader.line_num, row, chosen, columns) if chosen else row
    except csv.Error as error:
        raise Refused(f"{path}:{reader.reader.line_num}: {error}", "the CSV is malformed there") from None


def _chosen(path: str, header: list[str], columns: Sequence[str]) -> list[str]:
    """The columns of prompt and completion; none where the rows have another shape."""
    pair = ["prompt", "completion"]
    if not columns and ({"instruction", "output"} <= set(header) or header == ["text"]):
        return []
    chosen = list(columns) or (pair if set(pair) <= set(header) else header[:2])
    if len(set(chosen)) != 2 or any(header.count(c) != 1 for c in chosen):
        raise Refused(
            f"{path}: columns {', '.join(chosen) or 'none'} cannot be prompt and completion; "
            f"it has {', '.join(header) or 'none'}",
            "name two of its columns: --columns PROMPT,COMPLETION",
        )
    return chosen


def _picked(path: str, line: int, row: Mapping[str, Any], chosen: Sequence[str], columns: Sequence[str]) -> Any:
    for column in chosen:
        if not row[column]:
            raise Refused(f"{path}:{line}: an empty {column}", "fill or remove it")
    return dict(zip(columns or ("prompt", "completion"), (row[c] for c in chosen), strict=True))


source = Source(_read, (".csv", ".tsv"))
