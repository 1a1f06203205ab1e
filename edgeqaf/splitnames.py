"""Names of the files that one file is split over: model-00001-of-00003.gguf, and so on to model-00003-of-00003.gguf.

Only the first of them names an artifact: a runtime opens it, and finds the others beside it.
"""

import re
from collections.abc import Iterable

NUMBERED = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})(\.\w+)")


def split_names(whole: str, count: int) -> list[str]:
    """What the ``count`` files that the file ``whole`` is split over are called; one keeps its name."""
    stem, dot, suffix = whole.rpartition(".")
    return [whole] if count == 1 else [f"{stem}-{i:05}-of-{count:05}{dot}{suffix}" for i in range(1, count + 1)]


def numbers_in(name: str) -> tuple[str, int, int]:
    """(name of the whole, number of the file from 1 on, of how many) as a name says; else (name, 1, 1)."""
    found = NUMBERED.fullmatch(name)
    if found is None or not 1 <= int(found[2]) <= int(found[3]) > 1:
        return name, 1, 1
    return found[1] + found[4], int(found[2]), int(found[3])


def names_from(first: str) -> list[str]:
    """What the files are called of which ``first`` is the first; of a name without numbers, itself."""
    whole, number, count = numbers_in(first)
    return split_names(whole, count) if number == 1 else [first]


def belonging(paths: Iterable[str], artifact: str) -> list[str]:
    """Those of some paths in a folder that are an artifact's: of its file, of its files, or in its folder."""
    tops = set(names_from(artifact))
    return [path for path in paths if path.split("/", 1)[0] in tops]
