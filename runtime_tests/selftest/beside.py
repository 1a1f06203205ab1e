"""Defects beside the matrices: float tensors, what an artifact says, bytes of its files. Each in a copy of its own."""

import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeqaf import plugins
from edgeqaf.digest import Floats
from edgeqaf.errors import EdgeqafError
from edgeqaf.protocols import Artifact, Configuration
from edgeqaf.report import Verdict, compare_bits
from runtime_tests import ladder
from runtime_tests.selftest import peers, registry
from runtime_tests.selftest.damage import damaged, placed
from runtime_tests.selftest.examine import Bench, hashes
from runtime_tests.selftest.findings import FILES, Control, Event, Finding, Missing
from runtime_tests.selftest.opened import copied, opened
from runtime_tests.selftest.registry import Kind, Target
from runtime_tests.selftest.subjects import exported, sizes

LOGITS = "logits"
Way = tuple[str, Configuration]


@dataclass(frozen=True)
class Begun:
    """A finding so far, should the process die of what comes now."""

    finding: Finding


def examine(bench: Bench, done: Collection[str]) -> Iterator[Event | Begun]:
    """Every kind that applies and is not done."""
    how = {Target.FLOATS: _floats, Target.STATEMENT: _statement, Target.FILE: _file}
    wanted = [target for target in how if target in bench.subject.targets]
    if Target.STATEMENT in wanted:
        if bench.restated is None:
            yield Missing(
                bench.subject.name, "statements", "they are not what this version would say, sound as they are"
            )
            wanted.remove(Target.STATEMENT)
        else:
            yield Control(bench.subject.name, "R0 statements")
    for kind in registry.every(*wanted) if wanted else ():
        if kind.name in done or (kind.target is not Target.FLOATS and kind.among not in ((), (bench.subject.format,))):
            continue
        place = bench.place / kind.name
        yield from how[kind.target](bench, kind, place)
        shutil.rmtree(place, ignore_errors=True)


def _floats(bench: Bench, kind: Kind, place: Path) -> Iterator[Event]:
    """R0, and R4 before and after: PyTorch's logits to the bit, as the witness of a merge has them."""
    for batch in placed([kind], sizes(bench.sound.model), bench.random(kind.name)):
        model, real = damaged(bench.sound.model, batch, bench.asked.seed)
        for defect in real:
            artifact = exported(model, bench.subject.format, place)
            rungs, by = _read_back(bench, artifact)
            torch = (ladder.REFERENCE, plugins.find("runtimes", ladder.REFERENCE).configurations[0])
            if bench.sound.small and (before := bench.logits(*torch)) is not None:
                after = bench.look(artifact, torch, bench.question((), logits=True)).logits
                rungs["R4"] = after is None or bool(compare_bits(before, after).any())
            told = _of_logits(bench, artifact) if bench.sound.small else {}
            yield Finding(
                kind.name, kind.family, bench.subject.name, defect.tensors, rungs, by, (), told, LOGITS if told else ""
            )


def _statement(bench: Bench, kind: Kind, place: Path) -> Iterator[Event | Begun]:
    artifact = copied(bench.artifact, place)
    made: list[object] = []
    bench.exporter.forge(artifact.path, lambda form: made.append(kind.apply(form, bench.random(kind.name))))
    if made == [False]:
        return
    rungs, by = _read_back(bench, artifact)
    yield from _run(bench, kind, artifact, ("the program",) if artifact.path.is_dir() else ("metadata",), rungs, by)


def _file(bench: Bench, kind: Kind, place: Path) -> Iterator[Event | Begun]:
    artifact = copied(bench.artifact, place)
    bytes_of = opened(artifact)
    if bytes_of is None:
        yield Missing(bench.subject.name, kind.name, "how this format lies in its bytes is not known here")
        return
    spoiled = kind.apply(bytes_of, bench.random(kind.name))
    if not spoiled:
        return
    rungs, by = _read_back(bench, artifact)
    matrices = [
        name for name, stored, _ in bench.artifact.quantized()
        if any(stored.name == hit or name in hit for hit in spoiled)
    ]  # fmt: skip
    yield from _run(bench, kind, artifact, tuple(spoiled), rungs, by, matrices)


def _read_back(bench: Bench, artifact: Artifact) -> tuple[dict[str, bool], str]:
    """What R0 sees, and the first that it says."""
    rungs, said = {FILES: hashes(artifact) != bench.hashes}, []
    try:
        found = Artifact(artifact.format, artifact.path, bench.exporter.read_back(artifact.path), artifact.reference)
        check = ladder.check_file(found, bench.digests)
        rungs["R0 tensors"] = check.verdict is Verdict.DIFFERENT
        said += [f"R0 {check.subject}: {check.reason}"] if rungs["R0 tensors"] else []
    except EdgeqafError as error:
        rungs["R0 tensors"] = True
        said.append(f"R0 {artifact.format}: {error}")
    if bench.restated is not None:
        try:
            stated = bench.exporter.stated(artifact.path)
            wrong = [k for k in stated.keys() | bench.restated.keys() if stated.get(k) != bench.restated.get(k)]
            rungs["R0 statements"] = bool(wrong)
            said += [f"R0 statements: {', '.join(sorted(wrong))}"] if wrong else []
        except EdgeqafError as error:
            rungs["R0 statements"] = True
            said.append(f"R0 statements: {error}")
    return rungs, next(iter(said), "")


def _run(
    bench: Bench, kind: Kind, artifact: Artifact, what: tuple[str, ...], rungs: dict[str, bool], by: str,
    matrices: Sequence[str] = (),
) -> Iterator[Event | Begun]:  # fmt: skip
    """What the runtimes that load the artifact see: of matrices in R1 and R2; else of logits."""
    so_far = Finding(kind.name, kind.family, bench.subject.name, what, rungs, by)
    reading = [way for way in bench.ways if plugins.find("runtimes", way[0]).reads]
    if not bench.sound.small or not reading:
        yield so_far
        return
    yield Begun(so_far)
    told, compared = (
        _products(bench, artifact, reading, matrices, rungs) if matrices else _whole(bench, artifact, rungs)
    )
    yield replace(so_far, peers=told, compared=compared if told else "")


def _products(
    bench: Bench, artifact: Artifact, reading: Sequence[Way], matrices: Sequence[str], rungs: dict[str, bool]
) -> tuple[dict[str, bool], str]:
    """What R1 and R2 see goes into ``rungs``; what tolerances see of products is returned."""
    told = []
    for way in reading:
        seen = bench.look(artifact, way, bench.question(matrices))
        for check in (check for check in seen.checks if check.verdict is not Verdict.ABSENT):
            caught = check.verdict in (Verdict.DIFFERENT, Verdict.REFUSED)
            rungs[check.rung] = rungs.get(check.rung, True) and caught
        sound = bench.look(bench.artifact, way, bench.question(matrices, rungs=False)).outputs
        told += [peers.seen(sound[name], seen.outputs[name]) for name in seen.outputs.keys() & sound.keys()]
    return peers.together(told), "products"


def _whole(bench: Bench, artifact: Artifact, rungs: dict[str, bool]) -> tuple[dict[str, bool], str]:
    """Of what a user gets: whether it is refused (R1), or gives logits that R4 refuses, as it holds no others."""
    assert bench.usual is not None
    before = bench.logits(*bench.usual)
    after = bench.look(artifact, bench.usual, bench.question((), logits=True)).logits
    if after is None or before is None:
        rungs["R1"] = after is None
        return {}, ""
    rungs["R4"] = before.shape != after.shape or not bool(np.isfinite(after).all())
    return peers.seen(before, after), LOGITS


def _of_logits(bench: Bench, artifact: Artifact) -> dict[str, bool]:
    """What tolerances see of the logits of what a user gets."""
    if bench.usual is None:
        return {}
    before: Floats | None = bench.logits(*bench.usual)
    after = bench.look(artifact, bench.usual, bench.question((), logits=True)).logits
    return {} if before is None or after is None else peers.seen(before, after)
