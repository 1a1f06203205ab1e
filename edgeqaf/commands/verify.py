"""verify: prove that the runtimes compute what PyTorch computes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgeqaf.options import Json, LlamaLib, PlacesFolder, claim_report, listed

if TYPE_CHECKING:
    from edgeqaf.dist import Dist
    from edgeqaf.protocols import RuntimeOptions
    from edgeqaf.report import VerificationReport
    from runtime_tests.golden.watch import Watch


def command(
    dists: Annotated[
        list[Path] | None, typer.Argument(metavar="DIST...", help="Dist folder made by export; several with --matrix.")
    ] = None,
    runtime: Annotated[str | None, typer.Option(help="Runtimes to ask, comma-separated; default: all.")] = None,
    require: Annotated[
        str | None, typer.Option(help="Rungs, runtimes or golden, that must be reached: R2,llama.cpp")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Hold runtimes against this model folder.")] = None,
    record: Annotated[
        Path | None, typer.Option(help="Add digests of what each runtime computed to this golden file, if all passed.")
    ] = None,
    check: Annotated[Path | None, typer.Option(help="Hold each runtime against its entry in this golden file.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Let --record replace entries that differ, and --matrix climb all again.")
    ] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Every runtime on every folder, as one HTML page; goes on where it was.")
    ] = False,
    up_to: Annotated[
        Literal["R2", "R4"], typer.Option(help="The last rung; up to R2 no prompt is run, nor a whole model loaded.")
    ] = "R4",
    llama_lib: LlamaLib = None,
    places: PlacesFolder = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads each runtime may use.")] = 1,
    memory: Annotated[
        float | None, typer.Option(min=0.1, help="GB that a process may take, two at a time; default: the machine's.")
    ] = None,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds without an answer after which a runtime hangs.")] = 3600,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON report, default DIST/verify.json; matrix.html.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML report, which CI services show.")] = None,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test", help="Seed defects, in DIST or in small models of every grid, and show that each is caught."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="What --self-test places its defects by.")] = 0,
    json: Json = False,
) -> None:
    """Climb the verification ladder: file, weights, kernels, logits; exit 4 on any difference."""
    from edgeqaf import checkpoint
    from edgeqaf import junit as xml
    from edgeqaf.child import Limits
    from edgeqaf.console import emit, say
    from edgeqaf.dist import open_dist
    from edgeqaf.jsonfile import write_json
    from edgeqaf.protocols import RuntimeOptions
    from edgeqaf.staging import staged
    from runtime_tests import required
    from runtime_tests import verify as verification
    from runtime_tests.golden.watch import Record
    from runtime_tests.matrix import run

    options = RuntimeOptions(llama_lib, threads, places=places, limits=Limits(memory, timeout))
    of_a_climb = {"against": against, "record": record, "check": check, "junit": junit, "up-to": up_to == "R2"}
    if self_test:
        _refuse_beside("--self-test", require=require, places=places, matrix=matrix, **of_a_climb)
        _self_test(_only(dists) if dists else None, runtime, options, seed, output, json)
        return
    if matrix:
        _refuse_beside("--matrix", **of_a_climb)
        run.run(_named(dists), runtime, options, output, listed(require), force=force, json=json)
        return
    _require_sound(record, check, force, up_to, listed(require))
    names = verification.parse_runtimes(runtime, elsewhere=places is not None)
    opened = open_dist(_only(dists))
    target = output or opened.folder / "verify.json"
    claim_report(target, "checks")
    if junit:
        xml.claim(junit)
    watch = _watch(opened, record, check, force)
    model = checkpoint.load(against) if against else None
    report, seconds = _climbed(opened, names, options, against=model, watch=watch, prompts=up_to == "R4")
    if junit:
        xml.write(report, junit, seconds)
    result = {"root": opened.receipt["root"], **report.as_json(), "known": _known(opened, names, options)}
    with staged(target, force=True) as part:
        write_json(part, result)
    if json:
        emit(result)
    required.require(report, listed(require))
    say(f"{target}: {len(report.checks) - len(report.absent)} checks passed, {len(report.absent)} absent")
    if isinstance(watch, Record):
        say(f"{record}: {watch.write()} goldens recorded; next: edgeqaf verify {opened.folder} --check {record}")


def _climbed(
    dist: "Dist", names: list[str], options: "RuntimeOptions", **more: Any
) -> tuple["VerificationReport", float]:
    """The report, shown, and the seconds it took. more: of `runtime_tests.verify.verify`."""
    import time

    from edgeqaf.console import progress
    from runtime_tests import verify as verification

    started = time.monotonic()
    with progress("verify", verification.steps(dist, names)) as advance:
        report = verification.verify(dist, names, options, advance, **more)
    verification.show(report)
    return report, time.monotonic() - started


def _named(dists: list[Path] | None) -> list[Path]:
    from edgeqaf.errors import UsageError

    if not dists:
        raise UsageError("verify needs a dist folder", "name one made by edgeqaf export, or ask for --self-test")
    return dists


def _only(dists: list[Path] | None) -> Path:
    from edgeqaf.errors import UsageError

    dists = _named(dists)
    if len(dists) > 1:
        raise UsageError(f"{len(dists)} dist folders are named", "verify one, or all of them with --matrix")
    return dists[0]


def _known(dist: "Dist", names: list[str], options: "RuntimeOptions") -> dict[str, list[str]]:
    """Say which pitfalls these runs meet; what is known, and who meets it."""
    from edgeqaf.console import say
    from runtime_tests import pitfalls

    met = pitfalls.met(dist.artifacts, names, options)
    for what, runs in met.items():
        say(f"known of {', '.join(runs)}: {what}")
    return met


def _watch(dist: "Dist", record: Path | None, check: Path | None, force: bool) -> "Watch":
    from runtime_tests.golden.watch import Compare, Record, Watch

    if record:
        return Record(record, dist, force)
    return Compare(check, dist) if check else Watch()


def _require_sound(record: Path | None, check: Path | None, force: bool, up_to: str, required: list[str]) -> None:
    """UsageError for options that contradict each other."""
    from edgeqaf.errors import UsageError

    if record and check:
        raise UsageError("--record and --check exclude each other", "check first, and record what is meant to change")
    if force and not record:
        raise UsageError("--force is for --record", "drop it")
    if up_to == "R2" and (record or check):
        raise UsageError("a golden remembers prompts, which --up-to R2 leaves out", "drop one of the two")
    if not check and "golden" in map(str.lower, required):
        raise UsageError("--require golden needs a golden file", "name it: --check FILE")


def _refuse_beside(flag: str, **others: object) -> None:
    """UsageError for an option that has no meaning beside ``flag``."""
    from edgeqaf.errors import UsageError

    for name, value in others.items():
        if value:
            raise UsageError(f"{flag} and --{name} exclude each other", "drop one of the two")


def _self_test(
    dist: Path | None, runtime: str | None, options: "RuntimeOptions", seed: int, output: Path | None, json: bool
) -> None:
    from edgeqaf.console import emit, progress
    from edgeqaf.jsonfile import write_json
    from edgeqaf.staging import staged
    from runtime_tests import verify as verification
    from runtime_tests.selftest import bench

    names = verification.parse_runtimes(runtime, elsewhere=False)
    if output:
        claim_report(output, "findings")
    with progress("self-test", bench.count(dist, names)) as advance:
        report = bench.run(dist, names, options, seed, advance)
    report.show()
    if output:
        with staged(output, force=True) as part:
            write_json(part, report.as_json())
    if json:
        emit(report.as_json())
    bench.require(report)
