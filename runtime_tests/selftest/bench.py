"""All subjects, two at a time, each in a process of its own that may die: a death is a finding with a name."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from edgeqaf.child import stream
from edgeqaf.errors import EdgeqafError, Refused, VerificationFailed
from edgeqaf.protocols import Artifact
from edgeqaf.qtensor import QTensor
from edgeqaf.report import Verdict, compare_bits
from runtime_tests import ladder
from runtime_tests.selftest import engines, peers
from runtime_tests.selftest.beside import Begun
from runtime_tests.selftest.examine import Asked, examine
from runtime_tests.selftest.findings import Event, Finding, Missing, Report
from runtime_tests.selftest.looking import Look, keep_quiet, named
from runtime_tests.selftest.matrices import NAME
from runtime_tests.selftest.registry import Kind
from runtime_tests.selftest.subjects import Subject, made_on_the_fly, of_dist

AT_ONCE = 2
Done = Callable[[str], None]  # told of each subject that is through


def count(dist: Path | None, asked: Asked) -> int:
    """How many times `run` will say that a subject is through."""
    return len(_subjects(dist)) + (0 if dist else len(_engines(asked)))


def run(dist: Path | None, asked: Asked, done: Done) -> Report:
    """The self-test of a dist folder, or of models made on the fly and of the engines themselves."""
    tasks: list[Callable[[], Iterator[Event]]] = []
    for share in _shares(_subjects(dist)):
        tasks.append(partial(_examined, share, asked, done))
    tasks += [] if dist else [partial(_engine, name, asked, done) for name in _engines(asked)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        events = [event for found in pool.map(list, (task() for task in tasks)) for event in found]
    return Report.of(asked.seed, events)


def require(report: Report) -> None:
    """VerificationFailed if a defect escaped, if what is sound was accused, or if nothing was seeded."""
    if report.escaped:
        first = report.escaped[0]
        raise VerificationFailed(
            f"{len(report.escaped)} of {len(report.findings)} defects escaped; {first.kind} in {first.subject}, "
            f"{', '.join(first.tensors)}",
            "no rung saw it: this is a defect of the verifier; please report it",
        )
    if report.accused:
        first_control = report.accused[0]
        raise VerificationFailed(
            f"{first_control.subject}, {first_control.who}: accused without cause: {', '.join(first_control.wrong)}",
            "this is a defect of the verifier or of the runtime: run edgeqaf verify on it",
        )
    if not report.findings:
        raise VerificationFailed("no defect could be seeded", "see what is missing")


def _subjects(dist: Path | None) -> list[Subject]:
    return list(of_dist(dist) if dist else made_on_the_fly())


def _engines(asked: Asked) -> list[str]:
    return [name for name in asked.runtimes if engines.kinds(name)]


def _shares(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """For each process its subjects; those of one format and program together, whose program is traced once."""
    groups: dict[tuple[str, str], list[Subject]] = {}
    for subject in subjects:
        groups.setdefault((subject.format, subject.options.profile), []).append(subject)
    shares: list[list[Subject]] = [[] for _ in range(AT_ONCE)]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(shares, key=len).extend(group)
    return [share for share in shares if share]


def examine_all(subjects: Sequence[Subject], asked: Asked, done: Sequence[frozenset[str]]) -> Iterator[object]:
    """In a child: `examine` of each, and its name after it. done: of each, the kinds that are not to be tried again."""
    keep_quiet()
    for subject, kinds in zip(subjects, done, strict=True):
        yield from examine(subject, asked, kinds)
        yield subject.name


def _examined(subjects: Sequence[Subject], asked: Asked, done: Done) -> Iterator[Event]:
    """All findings of some subjects. A child that dies is told of, and another goes on where it was."""
    left = list(subjects)
    tried: dict[str, set[str]] = {subject.name: set() for subject in subjects}
    while left:
        begun: Begun | None = None
        try:
            known = [frozenset(tried[subject.name]) for subject in left]
            for event in stream("the self-test", examine_all, left, asked, known):
                if isinstance(event, str):
                    left, begun = left[1:], None
                    done(event)
                elif isinstance(event, Begun):
                    begun = event
                else:
                    begun = None
                    tried[left[0].name].add(event.kind if isinstance(event, Finding) and _beside(event) else NAME)
                    yield event
        except Refused as death:
            if begun is None:
                yield Missing(left[0].name, "the rest of it", str(death))
                left = left[1:]
                continue
            tried[left[0].name] |= {NAME, begun.finding.kind}
            yield replace(begun.finding, rungs={**begun.finding.rungs, "R1": True}, by=begun.finding.by or str(death))


def _beside(finding: Finding) -> bool:
    """Whether it was seeded alone."""
    return finding.family in ("floats", "statements", "files")


def _engine(name: str, asked: Asked, done: Done) -> Iterator[Event]:
    """Every kind of an engine, in a process of its own each."""
    with tempfile.TemporaryDirectory(prefix="edgeqaf-self-test-") as folder:
        try:
            artifact, expected = next(stream(name, engines.ready, name, asked, Path(folder)))
            sound = {seen.who: seen for seen in _tried(name, None, artifact, expected, asked)}
        except EdgeqafError as error:
            yield Missing(name, "the engine", str(error))
            done(name)
            return
        for kind in engines.kinds(name):
            try:
                looks: list[Look] | str = _tried(name, kind.name, artifact, expected, asked)
            except EdgeqafError as death:
                looks = str(death)
            yield _of_engine(name, kind, sound, looks)
    done(name)


def _tried(name: str, kind: str | None, artifact: Artifact, expected: Mapping[str, QTensor], asked: Asked) -> list[Look]:
    looks: list[Look] = next(stream(f"{name}, {kind or 'as it is'}", engines.try_out, name, kind, artifact, expected, asked))
    return looks


def _of_engine(name: str, kind: Kind, sound: Mapping[str, Look], looks: Sequence[Look] | str) -> Finding | Missing:
    """What the rungs see of a changed engine; a change that changes nothing here is none."""
    if isinstance(looks, str):
        return Finding(kind.name, kind.family, name, ("the engine",), {"R1": True}, looks)
    pairs = [(sound[seen.who], seen) for seen in looks if seen.who in sound and not seen.absent]
    if not pairs:
        return Missing(name, kind.name, "this build has none of the instructions, or no configuration that it bears on")
    rungs: dict[str, bool] = {}
    told: dict[str, bool] = {}
    wrong: set[str] = set()
    said, changed = [], False
    for before, after in pairs:
        was = {check.rung: check.verdict for check in before.checks}
        for check in after.checks:
            if check.verdict is Verdict.ABSENT:
                continue
            seen = check.verdict is not Verdict.EXACT and check.verdict is not was.get(check.rung)
            rungs[check.rung] = rungs.get(check.rung, False) or seen
            wrong |= set(check.wrong)
            said += [f"{check.rung} {check.subject}: {named(check)}"] if seen else []
            changed |= seen
        for tensor in before.outputs.keys() & after.outputs.keys():
            a, b = before.outputs[tensor], after.outputs[tensor]
            changed |= bool(compare_bits(a, b).any())
            told = {p: told.get(p, False) or tells for p, tells in peers.seen(a, b).items()}
        if before.logits is not None and after.logits is not None and (compare_bits(before.logits, after.logits)).any():
            changed = True
            if name == ladder.REFERENCE:  # the witness holds its bits
                rungs["R4"] = True
                said.append(f"R4 {after.who}: other logits than before")
            told = {p: told.get(p, False) or tells for p, tells in peers.seen(before.logits, after.logits).items()}
    if not changed:
        return Missing(name, kind.name, "it changes no bit of what this machine's kernels compute")
    tensors = tuple(sorted(wrong)) or ("the engine",)
    return Finding(kind.name, kind.family, name, tensors, rungs, next(iter(said), ""), (), told, "products and logits")
