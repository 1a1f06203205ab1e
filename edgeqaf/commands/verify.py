"""verify: prove that the runtimes compute what PyTorch computes."""

from pathlib import Path
from typing import Annotated

import typer

from edgeqaf.options import Json, LlamaLib, PlacesFolder, claim_report


def command(
    dist: Annotated[Path, typer.Argument(help="Dist folder made by export.")],
    runtime: Annotated[str | None, typer.Option(help="Runtimes to ask, comma-separated; default: all.")] = None,
    require: Annotated[str | None, typer.Option(help="Rungs or runtimes that must be reached: R2,llama.cpp")] = None,
    against: Annotated[Path | None, typer.Option(help="Hold runtimes against this model folder.")] = None,
    llama_lib: LlamaLib = None,
    places: PlacesFolder = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads each runtime may use.")] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON report; default DIST/verify.json.")
    ] = None,
    json: Json = False,
) -> None:
    """Climb the verification ladder: file, weights, kernels, logits; exit 4 on any difference."""
    from edgeqaf import checkpoint
    from edgeqaf.console import emit, progress, say
    from edgeqaf.dist import open_dist
    from edgeqaf.jsonfile import write_json
    from edgeqaf.protocols import RuntimeOptions
    from edgeqaf.staging import staged
    from runtime_tests import pitfalls
    from runtime_tests import verify as verification

    target = output or dist / "verify.json"
    names = verification.parse_runtimes(runtime, elsewhere=places is not None)
    opened = open_dist(dist)
    claim_report(target, "checks")
    expected = dict(checkpoint.load(against).quantized()) if against else None
    with progress("verify", verification.steps(opened, names)) as advance:
        options = RuntimeOptions(llama_lib, threads, places=places)
        report = verification.verify(opened, names, options, advance, expected)
    verification.show(report)
    met = pitfalls.met(opened.artifacts, names, options)
    for what, runs in met.items():
        say(f"known of {', '.join(runs)}: {what}")
    result = {"root": opened.receipt["root"], **report.as_json(), "known": met}
    with staged(target, force=True) as part:
        write_json(part, result)
    if json:
        emit(result)
    verification.require(report, [item.strip() for item in require.split(",")] if require else [])
    passed = len(report.checks) - len(report.absent)
    say(f"{target}: {passed} checks passed, {len(report.absent)} absent")
