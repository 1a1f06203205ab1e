"""report: one HTML page that shows what was tuned, exported and proven."""

from pathlib import Path
from typing import Annotated

import typer

from edgeqaf.options import Force, Json, Output


def command(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, and at most one dist folder, in any order.")],
    output: Output,
    scores: Annotated[list[Path] | None, typer.Option(help="Score file written by eval; may be repeated.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a self-contained HTML report: scores, loss curves, codes moved, verification, files."""
    from edgeqaf import html
    from edgeqaf.console import emit, say
    from edgeqaf.errors import UsageError
    from edgeqaf.staging import require_new, staged

    require_new(output, force)
    if output.is_dir():
        raise UsageError(f"{output} is a folder", "name the HTML file to write")
    page = html.collect(folders, scores or [])
    text = html.render(page)
    with staged(output, force=force, needed_bytes=len(text)) as part:
        part.write_text(text, "utf-8")
    tone, sentence = html.conclude(page)
    say(sentence)
    say(f"{output}: {len(text.encode()):,} bytes; open it in a browser")
    if json:
        emit({"output": str(output), "verdict": tone.value, "sentence": sentence, "missing": page.missing})
