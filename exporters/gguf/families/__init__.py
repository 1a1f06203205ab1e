"""One file for each architecture that GGUF export knows, named as GGUF names it; each exposes ``family``."""

import importlib
import pkgutil
from collections.abc import Iterator

from edgeqaf.errors import Refused
from exporters.gguf.family import Family
from exporters.gguf.numbers import Config, Metadata, text_in


def names() -> list[str]:
    """The architectures, sorted; none is imported."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def named(architecture: str) -> Family:
    """The family of that file name."""
    family: Family = importlib.import_module(f"{__name__}.{architecture}").family
    return family


def of_config(config: Config) -> Family:
    """The family that serves a config.json's ``model_type``; Refused with the known ones if there is none."""
    known = dict(_model_types())
    found = config.get("model_type")
    if not isinstance(found, str) or found not in known:
        raise Refused(
            f"config.json: model_type is {found!r}; GGUF export supports {', '.join(sorted(known))}",
            "export a model of these, or leave GGUF out",
        )
    return known[found]


def of_file(metadata: Metadata) -> Family:
    """The family of a GGUF file's architecture; Refused with the known ones if there is none."""
    found = text_in(metadata, "general.architecture", "unknown")
    if found not in names():
        raise Refused(f"architecture {found!r} is not among {', '.join(names())}", "use a model of these architectures")
    return named(found)


def _model_types() -> Iterator[tuple[str, Family]]:
    for name in names():
        family = named(name)
        yield from ((model_type, family) for model_type in family.model_types)
