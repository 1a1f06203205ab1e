"""Discovery: the file name is the registry key.

A new grid, quantizer, adapter, exporter, runtime or command is one file in the folder of its kind
that exposes one agreed name. Nothing else lists it.
"""

import difflib
import importlib
import importlib.util
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from edgeqaf.errors import ShadowedPackage, UsageError

# kind -> (package that holds one module per entry, name each module exposes)
KINDS = {
    "grids": ("edgeqaf.grids", "grid"),
    "importers": ("edgeqaf.importers", "importer"),
    "quantizers": ("edgeqaf.quantizers", "quantizer"),
    "adapters": ("edgeqaf.adapters", "adapter"),
    "sources": ("edgeqaf.data.sources", "source"),
    "commands": ("edgeqaf.commands", "command"),
    "tasks": ("edgeqaf.bench.tasks", "task"),
    "exporters": ("exporters", "exporter"),
    "runtimes": ("runtime_tests.runtimes", "runtime"),
}


def names(kind: str) -> list[str]:
    """Every entry of ``kind``, sorted; nothing is imported but the package that holds them."""
    return list(_names(kind))


@cache
def _names(kind: str) -> tuple[str, ...]:
    found = (m.name for m in pkgutil.iter_modules([str(folder(KINDS[kind][0]))]))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def find(kind: str, name: str) -> Any:
    """The entry ``name`` of ``kind``, e.g. ``find("grids", "q4_0")``; spelled as `resolve` allows."""
    package, attribute = KINDS[kind]
    return getattr(importlib.import_module(f"{package}.{resolve(kind, name)}"), attribute)


def resolve(kind: str, name: str) -> str:
    """The registry key that a user's ``name`` means.

    Dots, dashes and case do not matter, and a unique beginning is enough (``inter``), where names that continue another
    do not count (``llama`` is ``llama_cpp``, whatever there is of ``llama_cpp_arm``). Of several that begin so, the one
    that goes on with ``_cpu`` is meant (``torch``).
    Raises UsageError for an unknown name, listing the known ones and the nearest spelling.
    """
    known = names(kind)
    key = name.lower().replace(".", "_").replace("-", "_")
    begun = [n for n in known if n.startswith(key)] if key else []
    if key not in known and begun and all(n.startswith(begun[0]) for n in begun):  # sorted, so the shortest is first
        key = begun[0]
    if key not in known and f"{key}_cpu" in known:
        key = f"{key}_cpu"
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"unknown {kind.removesuffix('s')} {name!r}", f"{hint}known: {', '.join(known)}")
    return key


def folder(package: str) -> Path:
    """The folder of ``package``, checked to be edgeqaf's own and not another distribution's."""
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # its parent is another distribution's, and has no such part
        spec = None
    found = Path(next(iter(spec.submodule_search_locations or []), "")) if spec else Path()
    expected = Path(__file__).resolve().parent.parent / package.replace(".", "/")
    if found.resolve() != expected:
        raise ShadowedPackage(
            f"the package {package!r} that Python finds ({found}) is not edgeqaf's own",
            "install edgeqaf in an environment of its own (pipx, uv tool, or a fresh venv)",
        )
    return found
