"""What is to be asked: columns of models, rows of configurations that some artifact is for, jobs of what is here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from edgeqaf import plugins
from edgeqaf.digest import FLOAT32
from edgeqaf.dist import Dist
from edgeqaf.protocols import Availability, Runtime, RuntimeOptions, fitting
from runtime_tests import ladder
from runtime_tests.job import Job, named
from runtime_tests.matrix.cells import Column, Row
from runtime_tests.matrix.families import ORDER, family

PARTS = 2  # of a path that a column may take, at least, before its names are told apart by more


@dataclass(frozen=True)
class Plan:
    """folders: the column of each dist folder; subjects: the row of each name that checks are reported under."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    folders: Mapping[Path, Column]
    labels: Mapping[Path, str]
    subjects: Mapping[str, Row]


def plan(dists: Sequence[Dist], names: Sequence[str], options: RuntimeOptions) -> Plan:
    """Rows in the order of their headings; a runtime that is absent as a whole has one row."""
    labels = _labels([dist.folder for dist in dists])
    columns = _columns(dists, labels)
    subjects: dict[str, Row] = {}
    for name in names:
        runtime: Runtime = plugins.find("runtimes", name)
        available = runtime.availability(options)
        for dist in dists:
            for artifact in dist.artifacts:
                for configuration in fitting(runtime, artifact):
                    own = configuration.name if available.version else ""
                    subjects[named(name, own, artifact.format)] = _row(name, own, available)
    rows = sorted(dict.fromkeys(subjects.values()), key=lambda row: ORDER.index(row.family))
    return Plan(list(dict.fromkeys(columns.values())), rows, columns, labels, subjects)


def jobs(dist: Dist, names: Sequence[str], options: RuntimeOptions) -> Iterator[Job]:
    """The climbs that `runtime_tests.verify.verify` makes of a folder, without what they are held against."""
    roots = set()
    for artifact in dist.artifacts:
        new = artifact.root not in roots
        roots.add(artifact.root)
        asked = [name for name in names if name != ladder.REFERENCE or new]
        yield from (job for job in ladder.jobs(artifact, {}, asked, options) if isinstance(job, Job))


def _row(runtime: str, configuration: str, available: Availability) -> Row:
    return Row(family(runtime, configuration), runtime, configuration, available.version or "", available.isa)


def _columns(dists: Sequence[Dist], labels: Mapping[Path, str]) -> dict[Path, Column]:
    """Folders with the same root are one column, under the first one's name."""
    together: dict[str, list[Dist]] = {}
    for dist in dists:
        together.setdefault(dist.receipt["root"], []).append(dist)
    found: dict[Path, Column] = {}
    for root, same in together.items():
        tensors = [t for t in same[0].receipt["tensors"].values() if t["grid"] != FLOAT32]
        folders = tuple(labels[dist.folder] for dist in same)
        grids = tuple(sorted({t["grid"] for t in tensors}))
        column = Column(root, folders[0], folders, sum(prod(t["shape"]) for t in tensors), grids)
        found |= {dist.folder: column for dist in same}
    return {dist.folder: found[dist.folder] for dist in dists}


def _labels(folders: Sequence[Path]) -> dict[Path, str]:
    """The shortest ends of the paths that tell them apart; a name that says nothing ("dist") brings its parent's."""
    parts = {folder: folder.resolve().parts for folder in folders}
    longest = max(map(len, parts.values()))
    for size in range(1, longest + 1):
        ends = {folder: "/".join(p[-max(size, PARTS) if p[-1] == "dist" else -size :]) for folder, p in parts.items()}
        if len(set(ends.values())) == len(ends):
            return ends
    return {folder: str(folder) for folder in folders}
