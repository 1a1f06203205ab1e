"""Write docs/reference/cli.md from the typer app:  python docs/reference/generate_cli.py"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from edgeqaf.cli import application

PAGE = Path(__file__).with_name("cli.md")


def page() -> str:
    """The whole page as Markdown."""
    parts = [
        "# Command line\n",
        "<!-- Written by docs/reference/generate_cli.py; do not edit. -->\n",
        "Outputs go to `-o` and must not exist yet; `--force` replaces only what the same command wrote. "
        "`--json` prints one object on stdout and nothing else there. "
        "[Exit codes](exit-codes.md).\n",
    ]
    parts += [_section(path, command) for path, command in commands()]
    return "\n".join(parts)


def commands() -> Iterator[tuple[str, Any]]:
    """("edgeqaf", the app), ("edgeqaf quantize", its command) and so on, groups before what is in them."""
    yield from _walk("edgeqaf", typer.main.get_command(application()))


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _walk(f"{path} {name}", inner)


def _section(path: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
    words = [f"{p.name.upper()}{'...' if p.nargs == -1 else ''}" for p in arguments]
    needed = [f"{p.opts[0]} {p.name.upper().strip('_')}" for p in options if p.required]
    usage = " ".join([path, *words, *needed, *(["COMMAND"] if hasattr(command, "commands") else ["[OPTIONS]"])])
    lines = [f"## {path}\n", f"    {usage}\n", f"{command.help}\n"]
    if words or options:
        lines += ["| | | default |", "|---|---|---|"]
        lines += [f"| `{word}` | {p.help} | required |" for word, p in zip(words, arguments, strict=True)]
        lines += [f"| {_spelling(p)} | {p.help} | {_default(p)} |" for p in options]
        lines.append("")
    return "\n".join(lines)


def _spelling(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    bounds = [f"{word} {n}" for word, n in (("from", option.min), ("to", option.max)) if n is not None]
    notes = [*(["may be repeated"] if option.multiple else []), *([" ".join(bounds)] if bounds else [])]
    return f"{names} ({', '.join(notes)})" if notes else names


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if option.is_flag or option.default is None or option.multiple:
        return ""
    return f"`{option.default}`"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
