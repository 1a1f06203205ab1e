"""Parquet files, through pyarrow: only the columns that rows are made of are read."""

from collections.abc import Iterator, Sequence
from typing import Any

from edgeqaf.data.reading import Source
from edgeqaf.data.tables import needed, package, without_nulls
from edgeqaf.errors import Refused

BATCH = 1024  # rows decoded at a time


def _read(path: str, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    parquet, arrow = package("pyarrow.parquet", path), package("pyarrow", path)
    number = 0
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            chosen = needed(path, file.schema_arrow.names, columns)
            for batch in file.iter_batches(BATCH, columns=chosen, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, without_nulls(row)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Refused(
            f"{path}: not readable as parquet behind row {number} ({error})", "the file is corrupt; fetch it again"
        ) from None


source = Source(_read, (".parquet",), "{}: row {}")
