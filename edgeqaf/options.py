"""Options that several commands share, so that they read and behave alike everywhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

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
        text = path.read_text("utf-8")
        values, root = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}", "give a readable YAML file") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UsageError(
            f"{path} holds a YAML {type(values).__name__}, not keys and values", "write `key: value` lines"
        )
    known = keys(context.command)
    for key in values:
        if _spelled(key) not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise UsageError(
                f"{path}: unknown key {key!r}", f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            )
    written = [_spelled(key.value) for key, _ in root.value] if isinstance(root, yaml.MappingNode) else []
    twice = sorted({key for key in written if written.count(key) > 1})
    if twice:
        raise UsageError(f"{path}: key {twice[0]!r} is there twice", "keep one of them")
    options = {known[_spelled(key)]: value for key, value in values.items()}
    defaults = {option.name: _value(option, value) for option, value in options.items() if value is not None}
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def keys(command: Any) -> dict[str, Any]:
    """The options of a command that its YAML file may set, by key: the flag without its dashes."""
    options = [p for p in command.params if p.param_type_name == "option" and p.name not in ("config", "help")]
    return {name.removeprefix("--"): p for p in options for name in p.opts if name.startswith("--")}


def listed(value: str | None) -> list[str]:
    """The items of a comma-separated option."""
    return [item.strip() for item in value.split(",") if item.strip()] if value else []


def _spelled(key: object) -> str:
    return str(key).replace("_", "-")


def _value(option: Any, value: Any) -> Any:
    """A YAML mapping as ``key=value`` items, which the repeated ``--set`` takes; a list, where one value is wanted,
    with commas between."""
    if option.multiple:
        return list(_items(value)) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    if isinstance(value, list) and not option.multiple:
        return ",".join(map(str, value))
    return value


def _items(values: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    """``key=value`` of every entry, ``outer.key=value`` of one within another; null stands for the default."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _items(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}={value}"


def claim(output: Path, kind: str, force: bool) -> None:
    """Refuse, before any work, an output that exists; with ``force``, one that is not an earlier output of its kind.

    kind: of the folder about to be written, as a manifest says it. So --force never takes away the model that is
    read, or whatever else a mistyped path names.
    """
    from edgeqaf.staging import require_new

    require_new(output, force)
    if output.exists() and kind not in _kinds(output):
        raise UsageError(
            f"{output} is there and no {kind} folder",
            "choose another output, or remove it yourself; --force replaces only what the same command wrote",
        )


def claim_report(output: Path, key: str) -> None:
    """Refuse, before any work, to replace anything but an earlier JSON report, told by its top-level ``key``."""
    from edgeqaf.errors import Refused
    from edgeqaf.jsonfile import read_json
    from edgeqaf.staging import require_new

    require_new(output, force=True)
    try:
        earlier = not output.exists() or key in read_json(output)
    except Refused:
        earlier = False
    if not earlier:
        raise UsageError(f"{output} is there and no earlier report", "choose another output, or remove it yourself")


def _kinds(folder: Path) -> tuple[str, ...]:
    """The kind of folder that this is; any kind for an empty one, none for what edgeqaf did not write."""
    from edgeqaf.errors import Refused
    from edgeqaf.jsonfile import read_json

    if folder.is_dir() and not any(folder.iterdir()):
        return "base", "run", "merged", "dist"
    if (folder / "finetune.json").is_file():
        return ("run",)
    try:
        return (str(read_json(folder / "edgeqaf.json").get("kind")),)
    except Refused:
        return ()


def _quiet(value: bool) -> bool:
    be_quiet(value)
    return value


def place(device: str) -> str:
    """cpu or cuda; ``auto`` is a GPU where torch sees one. UsageError for one that is not there."""
    if device == "cpu":
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise UsageError("torch sees no CUDA GPU", "install torch's CUDA build, or pass --device cpu")
    return "cpu"


Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write; must not exist yet.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier output of the same kind.")]
Json = Annotated[bool, typer.Option("--json", callback=_quiet, is_eager=True, help="One JSON object on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with sizes, and do nothing.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", callback=_configure, is_eager=True, help="YAML file whose keys are flag names."),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Where PyTorch computes; auto: on a GPU if there is one.")
]
PlacesFolder = Annotated[
    Path | None, typer.Option("--places", help="Folder with runtimes that are elsewhere, as `make places` fetches it.")
]
LlamaLib = Annotated[Path | None, typer.Option("--llama-lib", help="Folder with libllama to use for llama.cpp.")]
