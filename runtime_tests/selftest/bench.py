"""All subjects, two at a time, each in a process of its own that may die: a death is a finding with a name."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from itertools import count as count_from
from pathlib import Path

from edgeqaf.child import stream
from edgeqaf.console import Advance
from edgeqaf.digest import Floats
from edgeqaf.errors import EdgeqafError, Refused, VerificationFailed
from edgeqaf.protocols import Artifact, RuntimeOptions
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
Done = Callable[[str], None]  # is told of each subject that is through


def count(dist: Path | None, runtimes: Sequence[str]) -> int:
    """How many subjects `run` has to go through."""
    return len(_subjects(dist)) + (0 if dist else len(_engines(runtimes)))


def run(dist: Path | None, runtimes: Sequence[str], options: RuntimeOptions, seed: int, advance: Advance) -> Report:
    """The self-test of a dist folder, or of models made on the fly and of the engines themselves."""
    asked, through = Asked(tuple(runtimes), options, seed), count_from(1)

    def done(name: str) -> None:
        advance(next(through), name)

    tasks = [partial(_examined, share, asked, done) for share in _shares(_subjects(dist))]
    tasks += [] if dist else [partial(_engine, name, asked, done) for name in _engines(runtimes)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found: list[list[Event]] = list(pool.map(lambda task: list(task()), tasks))
    return Report.of(seed, chain.from_iterable(found))


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


def _engines(runtimes: Sequence[str]) -> list[str]:
    return [name for name in runtimes if engines.kinds(name)]


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


def _tried(
    name: str, kind: str | None, artifact: Artifact, expected: Mapping[str, QTensor], asked: Asked
) -> list[Look]:
    looks: list[Look] = next(
        stream(f"{name}, {kind or 'as it is'}", engines.try_out, name, kind, artifact, expected, asked)
    )
    return looks


def _of_engine(name: str, kind: Kind, sound: Mapping[str, Look], looks: Sequence[Look] | str) -> Finding | Missing:
    """What the rungs see of a changed engine; a change that changes nothing here is none."""
    if isinstance(looks, str):
        return Finding(kind.name, kind.family, name, ("the engine",), {"R1": True}, looks)
    pairs = [(sound[seen.who], seen) for seen in looks if seen.who in sound and not seen.absent]
    if not pairs:
        return Missing(name, kind.name, "this build has none of the instructions, or no configuration that it bears on")
    rungs: dict[str, bool] = {}
    said: list[str] = []
    for before, after in pairs:
        for rung, what in _noticed(name, before, after):
            rungs[rung] = rungs.get(rung, False) or bool(what)
            said += [what] if what else []
    computed = [each for before, after in pairs for each in _computed(before, after)]
    if not said and not any(compare_bits(a, b).any() for a, b in computed):
        return Missing(name, kind.name, "it changes no bit of what this machine's kernels compute")
    wrong = {tensor for _, after in pairs for check in after.checks for tensor in check.wrong}
    told = peers.together(peers.seen(a, b) for a, b in computed)
    tensors = tuple(sorted(wrong)) or ("the engine",)
    return Finding(kind.name, kind.family, name, tensors, rungs, next(iter(said), ""), (), told, "products and logits")


def _noticed(name: str, before: Look, after: Look) -> Iterator[tuple[str, str]]:
    """(rung, what it says that it did not before; "" if nothing) of each rung that was reached."""
    was = {check.rung: check.verdict for check in before.checks}
    for check in after.checks:
        if check.verdict is not Verdict.ABSENT:
            other = check.verdict is not Verdict.EXACT and check.verdict is not was.get(check.rung)
            yield check.rung, f"{check.rung} {check.subject}: {named(check)}" if other else ""
    if name == ladder.REFERENCE and before.logits is not None and after.logits is not None:  # the witness has its bits
        changed = compare_bits(before.logits, after.logits).any()
        yield "R4", f"R4 {after.who}: other logits than before" if changed else ""


def _computed(before: Look, after: Look) -> Iterator[tuple[Floats, Floats]]:
    """Outputs and logits of an engine as it is, and as it was made."""
    for tensor in before.outputs.keys() & after.outputs.keys():
        yield before.outputs[tensor], after.outputs[tensor]
    if before.logits is not None and after.logits is not None:
        yield before.logits, after.logits
