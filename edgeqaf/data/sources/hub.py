"""Datasets of the Hugging Face Hub, or of a local folder in its layout, through the package datasets.

    org/name   hf:org/name   hf:org/name:config   hf:org/name:config:split   hf:org/name::split   hf:FOLDER

The split is ``train`` unless named. Only builders that parse data are let through; a dataset never
runs code of its own (the package has no such loader any more, and would be refused here if it had).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeqaf.data.reading import HUB, Source
from edgeqaf.data.tables import needed, package, without_nulls
from edgeqaf.errors import EdgeqafError, Refused, UsageError

BUILDERS = ("arrow", "csv", "json", "parquet", "text")  # of datasets.packaged_modules


def _read(name: str, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    place, config, split = _parts(name)
    datasets = package("datasets", f"{name} is no file here; as a dataset it")
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # no telemetry
    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(place, config)
        module = type(builder).__module__.split(".")
        if module[:2] != ["datasets", "packaged_modules"] or module[2] not in BUILDERS:
            raise Refused(
                f"{name} is read by {'.'.join(module)}, not by one of {', '.join(BUILDERS)}",
                "download it and convert it to .jsonl or .parquet",
            )
        builder.download_and_prepare()
        table = builder.as_dataset(split=split)
    except EdgeqafError:
        raise
    except Exception as error:  # the package lets through whatever its readers and the network raise
        raise Refused(
            f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            f"check the name: {HUB}org/name:config:split; a private one needs `hf auth login`",
        ) from None
    table = table.select_columns(needed(name, table.column_names, columns))
    yield from ((number, without_nulls(row)) for number, row in enumerate(table, 1))


def _parts(name: str) -> tuple[str, str | None, str]:
    """(repository or folder, config, split) of a name."""
    rest = name.removeprefix(HUB)
    place, config, split = [*rest.split(":"), "", ""][:3]
    if Path(rest).is_dir():  # a colon in it is its own
        place, config, split = rest, "", ""
    local = bool(place.strip("/")) and Path(place).is_dir()
    if not local and (rest.count(":") > 2 or place.count("/") != 1 or not all(place.split("/"))):
        raise UsageError(
            f"{name!r} names no dataset", f"write {HUB}org/name, {HUB}org/name:config:split or {HUB}FOLDER"
        )
    return place, config or None, split or "train"


source = Source(_read, (), "{}: row {}")
