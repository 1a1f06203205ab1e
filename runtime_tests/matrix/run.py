"""`edgeqaf verify DIST... --matrix`: climb what is missing, print the table, write the page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeqaf.console import emit, progress, say
from edgeqaf.dist import open_dist
from edgeqaf.errors import UsageError
from edgeqaf.protocols import RuntimeOptions
from edgeqaf.report import VerificationReport
from edgeqaf.staging import require_new, staged
from runtime_tests import verify
from runtime_tests.matrix import render
from runtime_tests.matrix.cells import Matrix
from runtime_tests.matrix.climb import Climber, climb, missing
from runtime_tests.matrix.store import Store
from runtime_tests.required import require

CLIMBS = ".climbs"  # instead of the page's suffix: the folder beside it in which climbs are kept


def run(
    folders: Sequence[Path], runtime: str | None, options: RuntimeOptions, output: Path | None, required: Sequence[str],
    *, force: bool, json: bool,
) -> None:  # fmt: skip
    """Raises as `runtime_tests.required.require` does, after the page is written."""
    names = verify.parse_runtimes(runtime, elsewhere=True)
    output = output or Path("matrix.html")
    _claim(output)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("one dist folder is named twice", "name each once")
    dists = [open_dist(folder) for folder in folders]
    store = Store(output.with_suffix(CLIMBS), fresh=force)
    expected = missing(dists, names, options, store)
    with progress("climb", expected) as advance:
        climber = Climber(store, advance, expected)
        matrix, reports = climb(dists, names, options, climber)
    text = render.page(matrix)
    with staged(output, force=True, needed_bytes=len(text)) as part:
        part.write_text(text, "utf-8")
    render.show(matrix)
    if json:
        emit(render.as_json(matrix))
    say(f"{output}: {len(text.encode()):,} bytes; {climber.new} climbs made, {climber.kept} kept from before")
    _require(matrix, reports, required)


def _claim(output: Path) -> None:
    """Refuse, before any work, to replace anything but an earlier matrix."""
    require_new(output, force=True)
    if output.is_dir() or (output.exists() and f"<title>{render.TITLE}" not in _beginning(output)):
        raise UsageError(f"{output} is there and no earlier matrix", "choose another output, or remove it yourself")


def _beginning(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(1000).decode("utf-8", "replace")


def _require(matrix: Matrix, reports: Sequence[VerificationReport], required: Sequence[str]) -> None:
    """Exit 4 for any failure, named with its folder; then what is demanded of each folder."""
    findings = matrix.findings
    checks = [replace(f.check, subject=f"{f.folder}: {f.check.subject}") for f in findings]
    require(VerificationReport(tuple(checks)), ())
    for report in reports:
        require(report, required)
