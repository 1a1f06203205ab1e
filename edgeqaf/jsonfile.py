"""JSON files, strictly: what is malformed or ambiguous is refused, what is written is deterministic."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgeqaf.errors import Refused

if TYPE_CHECKING:
    from pydantic import ValidationError

T = TypeVar("T")


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object, refusing what is missing, malformed or ambiguous (duplicate keys)."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice = {key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else set()
        if twice:
            raise Refused(f"{path}: duplicate key {min(twice)!r}", "the file is corrupt; fetch it again")
        return dict(pairs)

    try:
        value = json.loads(path.read_text("utf-8"), object_pairs_hook=unique)
    except FileNotFoundError:
        raise Refused(f"{path} does not exist", "check the path") from None
    except (ValueError, RecursionError, OSError) as error:
        raise Refused(f"{path} is not readable JSON: {error}", "the file is corrupt; fetch it again") from None
    if not isinstance(value, dict):
        raise Refused(
            f"{path} holds a JSON {type(value).__name__}, not an object", "the file is corrupt; fetch it again"
        )
    return value


def parse(type_: type[T], path: Path) -> T:
    """Parse a JSON file into a dataclass, strictly typed; keys it does not name are left out."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(type_).validate_json(json.dumps(read_json(path)), strict=True)
    except ValidationError as error:
        raise Refused(f"{path}: {fault(error)}", "the file is damaged, or of another version; make it again") from None


def fault(error: "ValidationError") -> str:
    """The first thing that is wrong, where, and what was found there."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where + ': ' if where else ''}{first['msg']}; found {str(first['input'])[:40]!r}"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write deterministic, readable JSON."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
