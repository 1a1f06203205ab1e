"""Defects of matrices: as many at a time as there are matrices, in an artifact that the real exporter made of them."""

from collections.abc import Iterator, Mapping, Sequence

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from edgeqaf.protocols import Artifact
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.report import Check, Verdict
from runtime_tests import ladder
from runtime_tests.golden.observation import activations
from runtime_tests.probes import FEWEST
from runtime_tests.selftest import peers, registry
from runtime_tests.selftest.damage import Defect, damaged, placed
from runtime_tests.selftest.examine import Bench, hashes
from runtime_tests.selftest.findings import FILES, Control, Event, Finding, Missing
from runtime_tests.selftest.looking import Look
from runtime_tests.selftest.subjects import TENSORS, exported, sizes

NAME = "matrices"
SPARE = 2  # sound matrices that are looked at beside, where there are more
PRODUCTS = "products"


def examine(bench: Bench) -> Iterator[Event]:
    """Of every kind that applies, one defect."""
    kinds = [kind for kind in registry.every(*TENSORS) if kind.target in bench.subject.targets]
    outline = sizes(bench.sound.model)
    for i, batch in enumerate(placed(kinds, outline, bench.random())):
        model, real = damaged(bench.sound.model, batch, bench.asked.seed)
        artifact = exported(model, bench.subject.format, bench.place / f"damaged {i}")
        yield from _examined(bench, artifact, real)


def _examined(bench: Bench, artifact: Artifact, real: Sequence[Defect]) -> Iterator[Event]:
    hit = {name for defect in real for name in defect.tensors}
    spare = [name for name, (grid, _) in sizes(bench.sound.model).items() if grid != "float32" and name not in hit]
    names = hit | set(spare[:SPARE])
    file = ladder.check_file(artifact, bench.digests)
    changed = hashes(artifact) != bench.hashes
    looks, sound = [], {}
    for way in bench.ways:
        seen = bench.look(artifact, way, bench.question(names, layers=bench.sound.small))
        if seen.absent:
            yield Missing(bench.subject.name, seen.who, seen.checks[0].detail)
            continue
        looks.append(seen)
        sound[seen.who] = bench.look(bench.artifact, way, bench.question(names, rungs=False)).outputs
        yield _control(bench, seen, hit, sound[seen.who])
    if not looks:
        raise Refused(f"{bench.subject.name}: no runtime here takes it", "install one, or name another with --runtime")
    yield Control(bench.subject.name, "R0 tensors", tuple(sorted(set(file.wrong) - hit)))
    for defect in real:
        yield _finding(bench, defect, file, looks, sound, changed)


def _control(bench: Bench, seen: Look, hit: set[str], sound: Mapping[str, Floats]) -> Control:
    """What is sound in the artifact must not be accused; and does it meet tolerances against PyTorch's products?"""
    wrong = {name for check in seen.checks for name in check.wrong} - hit
    wrong |= {check.detail for check in seen.checks if check.verdict is Verdict.REFUSED}
    spare = next((name for name in sorted(seen.outputs) if name not in hit), None)
    if spare is None:
        return Control(bench.subject.name, seen.who, tuple(sorted(wrong)))
    q = bench.sound.model.tensors[spare]
    assert isinstance(q, QTensor)
    product = activations(FEWEST, q.shape[1]) @ decode(q).T
    return Control(bench.subject.name, seen.who, tuple(sorted(wrong)), peers.seen(product, sound[spare]))


def _finding(
    bench: Bench, defect: Defect, file: Check, looks: Sequence[Look], sound: Mapping[str, Mapping[str, Floats]],
    changed: bool,
) -> Finding:  # fmt: skip
    """A rung has seen it if it named every damaged tensor in every configuration that reached it."""
    damaged = set(defect.tensors)
    rungs, blind = {FILES: changed, "R0 tensors": damaged <= set(file.wrong)}, []
    for check in (check for seen in looks for check in seen.checks if check.verdict is not Verdict.ABSENT):
        rungs[check.rung] = rungs.get(check.rung, True) and damaged <= set(check.wrong)
        blind += [] if damaged <= set(check.wrong) else [f"{check.rung} {check.subject}"]
    by = f"R0 {file.subject}: {', '.join(defect.tensors)}" if rungs["R0 tensors"] else ""
    told = peers.together(
        peers.seen(sound[seen.who][name], seen.outputs[name])
        for seen in looks
        for name in defect.tensors
        if name in seen.outputs and name in sound[seen.who]
    )
    kind, subject = defect.kind, bench.subject.name
    return Finding(kind.name, kind.family, subject, defect.tensors, rungs, by, tuple(blind), told, PRODUCTS)
