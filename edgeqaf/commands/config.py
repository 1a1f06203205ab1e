"""config: the file that holds a run's settings."""

from pathlib import Path
from typing import Annotated

import typer

from edgeqaf.options import Json

VERB = "finetune"  # the command that takes such a file


def command(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of edgeqaf.yaml.")] = False,
    init: Annotated[bool, typer.Option("--init", help="Write a commented edgeqaf.yaml with every default.")] = False,
    method: Annotated[str | None, typer.Option(help="With --init: whose options to write; default finetune's.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="With --init: where to write; must not exist yet.")] = (
        Path("edgeqaf.yaml")
    ),
    json: Json = False,
) -> None:
    """Describe or begin edgeqaf.yaml, the file that `finetune -c` takes its settings from."""
    from edgeqaf import configfile
    from edgeqaf.console import emit, say
    from edgeqaf.errors import UsageError
    from edgeqaf.method import method_of
    from edgeqaf.staging import staged

    if schema == init:
        raise UsageError("config needs one of --schema and --init", "edgeqaf config --schema, or edgeqaf config --init")
    if schema:
        emit(configfile.schema(VERB))
        return
    if method:
        method_of(method, {})
    with staged(output) as part:
        part.write_text(configfile.commented(VERB, method), "utf-8")
    say(f"{output}: every setting with its default")
    say(f"next: edgeqaf {VERB} base -c {output}")
    if json:
        emit({"output": str(output)})
