"""What sources of Arrow tables (parquet, datasets) share: which columns to ask for, and rows without padding."""

import importlib
from collections.abc import Sequence
from typing import Any

from edgeqaf.data.rows import KEYS
from edgeqaf.errors import Refused, RuntimeAbsent


def package(name: str, needed_by: str) -> Any:
    """The module ``name``; RuntimeAbsent where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise RuntimeAbsent(
            f"{needed_by} needs the package {name.split('.')[0]}, which is not installed", "pip install 'edgeqaf[data]'"
        ) from None


def needed(name: str, header: Sequence[str], columns: Sequence[str]) -> list[str]:
    """The columns of ``header`` that rows are made of; Refused where there are none."""
    found = [column for column in header if column in (columns or KEYS)]
    if not found or not set(columns) <= set(found):
        wanted = f"not {' and '.join(columns)}" if columns else "none that a row is made of"
        raise Refused(
            f"{name} has the columns {', '.join(header) or 'none'}, {wanted}",
            "name its prompt and completion: --columns PROMPT,COMPLETION; see docs/guides/data.md",
        )
    return found


def without_nulls(value: Any) -> Any:
    """``value`` without keys that hold null: Arrow gives every struct of a column all keys of any."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
