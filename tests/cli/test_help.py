"""Help is complete and light."""

import subprocess
import sys
from typing import Any

import pytest
import typer

from edgeqaf import cli

COMMANDS = typer.main.get_command(cli.application()).commands  # type: ignore[attr-defined]
VERBS = [(name,) for name, verb in COMMANDS.items() if not hasattr(verb, "commands")] + [
    (name, sub) for name, verb in COMMANDS.items() for sub in getattr(verb, "commands", ())
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_option_is_in_the_help(verb: tuple[str, ...], shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    command: Any = COMMANDS[verb[0]]
    for name in verb[1:]:
        command = command.commands[name]
    shown = shell.ok(*verb, "--help").out
    assert f"edgeqaf {' '.join(verb)}" in shown
    for parameter in command.params:
        assert parameter.help, parameter.name
        if parameter.param_type_name == "option":
            for spelling in parameter.opts:
                assert spelling in shown, spelling


def test_help_and_version_import_nothing_heavy() -> None:
    script = (
        "import sys; from edgeqaf import cli\n"
        "codes = [cli.run(['--help']), cli.run(['--version']), *(cli.run([*v, '--help']) for v in eval(sys.argv[1]))]\n"
        "print(sorted(set(codes)), sorted({'torch', 'transformers', 'numpy', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, repr(VERBS)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0] []"
    assert done.stderr == ""
