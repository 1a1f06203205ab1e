"""Options that several commands share, so that they read and behave alike everywhere."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqaf.console import be_quiet
from edgeqaf.errors import UsageError


def _configure(context: typer.Context, path: Path | None) -> Path | None:
    """Make a YAML file's keys the defaults of this command's options; a flag still wins."""
    if path is None:
        return None
    import difflib

    import yaml

    try:
        values = yaml.safe_load(path.read_text("utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}", "give a readable YAML file") from None
    if not isinstance(values, dict):
        raise UsageError(
            f"{path} holds a YAML {type(values).__name__}, not keys and values", "write `key: value` lines"
        )
    known = {
        name.lstrip("-"): p.name for p in context.command.params for name in p.opts if p.param_type_name == "option"
    }
    for key in values:
        if str(key).replace("_", "-") not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise UsageError(
                f"{path}: unknown key {key!r}", f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            )
    defaults = {known[str(key).replace("_", "-")]: _flat(value) for key, value in values.items()}
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _flat(value: Any) -> Any:
    """A YAML mapping becomes ``key=value`` items, as the repeated ``--set`` takes them."""
    return [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else value


def _quiet(value: bool) -> bool:
    be_quiet(value)
    return value


Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write; must not exist yet.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Json = Annotated[bool, typer.Option("--json", callback=_quiet, is_eager=True, help="One JSON object on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with sizes, and do nothing.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", callback=_configure, is_eager=True, help="YAML file whose keys are flag names."),
]
LlamaLib = Annotated[Path | None, typer.Option("--llama-lib", help="Folder with libllama to use for llama.cpp.")]
