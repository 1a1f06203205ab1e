"""Defects beside the matrices: float tensors, what an artifact says, bytes of its files. Each in a copy of its own."""

import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeqaf import plugins
from edgeqaf.digest import Floats
from edgeqaf.errors import EdgeqafError
from edgeqaf.protocols import Artifact
from edgeqaf.report import Verdict, compare_bits
from runtime_tests import ladder
from runtime_tests.selftest import peers, registry
from runtime_tests.selftest.damage import damaged, placed
from runtime_tests.selftest.examine import Bench, hashes
from runtime_tests.selftest.findings import FILES, Control, Event, Finding, Missing
from runtime_tests.selftest.looking import Look
from runtime_tests.selftest.opened import copied, opened
from runtime_tests.selftest.registry import Kind, Target
from runtime_tests.selftest.subjects import exported, sizes

LOGITS = "logits"


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
            yield Missing(bench.subject.name, "statements", "they are not what this version would say, sound as they are")
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
    spoiled = kind.apply(opened(artifact), bench.random(kind.name))
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
    """What the runtimes see: of matrices, R1 and R2; else logits, which R4 only holds to be finite."""

    def finding(told: dict[str, bool] | None = None, compared: str = "") -> Finding:
        return Finding(kind.name, kind.family, bench.subject.name, what, dict(rungs), by, (), told or {}, compared)

    reading = [w for w in bench.ways if plugins.find("runtimes", w[0]).reads]
    if not bench.sound.small or not reading:
        yield finding()
        return
    yield Begun(finding())
    if matrices:
        told: dict[str, bool] = {}
        for way in reading:
            seen = bench.look(artifact, way, bench.question(matrices))
            if seen.absent:
                continue
            sound = bench.look(bench.artifact, way, bench.question(matrices, rungs=False)).outputs
            _saw(seen, rungs)
            for name in seen.outputs.keys() & sound.keys():
                for peer, tells in peers.seen(sound[name], seen.outputs[name]).items():
                    told[peer] = told.get(peer, False) or tells
        yield finding(told, "products" if told else "")
        return
    assert bench.usual is not None
    seen = bench.look(artifact, bench.usual, bench.question((), logits=True))
    before = bench.logits(*bench.usual)
    if seen.logits is None or before is None:
        rungs["R1"] = seen.logits is None
        yield finding()
        return
    rungs["R4"] = before.shape != seen.logits.shape or not bool(np.isfinite(seen.logits).all())
    yield finding(peers.seen(before, seen.logits), LOGITS)


def _saw(seen: Look, rungs: dict[str, bool]) -> None:
    for check in seen.checks:
        if check.verdict is not Verdict.ABSENT:
            rungs[check.rung] = rungs.get(check.rung, True) and check.verdict in (Verdict.DIFFERENT, Verdict.REFUSED)


def _of_logits(bench: Bench, artifact: Artifact) -> dict[str, bool]:
    """What tolerances see of the logits of what a user gets."""
    if bench.usual is None:
        return {}
    before: Floats | None = bench.logits(*bench.usual)
    after = bench.look(artifact, bench.usual, bench.question((), logits=True)).logits
    return {} if before is None or after is None else peers.seen(before, after)
