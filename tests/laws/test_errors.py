"""Each error has the documented exit code, a cause, and a remedy."""

import inspect
import re

import pytest

from edgeqaf import __version__, cli, errors

DOCUMENTED = {
    "EdgeqafError": 1, "UsageError": 2, "Refused": 3, "GridError": 3, "VerificationFailed": 4, "Diverged": 4,
    "OutOfResources": 5, "RuntimeAbsent": 6, "ShadowedPackage": 6, "Interrupted": 7,
}  # fmt: skip
TYPES = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}


def test_the_exit_codes_are_the_documented_ones():
    assert {name: kind.exit_code for name, kind in TYPES.items()} == DOCUMENTED


def test_the_command_line_documents_every_code():
    codes = {int(n) for n in re.findall(r"\b(\d) [a-z]", cli.__doc__.split("Exit codes:")[1])}
    assert codes == {0, *DOCUMENTED.values()}


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_an_error_carries_its_cause_and_its_remedy(kind):
    error = kind("w[3] = nan", "fetch it again")
    assert isinstance(error, errors.EdgeqafError)
    assert str(error) == error.cause == "w[3] = nan"
    assert error.remedy == "fetch it again"
    assert kind("alone").remedy == ""


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_the_command_line_turns_an_error_into_two_lines_and_its_code(kind, monkeypatch, capsys):
    def application():
        def fail(**_):
            raise kind("what\nhappened", "what to do")

        return fail

    monkeypatch.setattr(cli, "application", application)
    assert cli.run([]) == kind.exit_code
    assert capsys.readouterr() == ("", "error: what happened\n  fix: what to do\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["nonsense"], "nonsense"), (["quantize"], "model"), (["quantize", "--gird", "q4_0"], "--gird"),
     (["--nope"], "--nope"), (["quantize", "model", "-o", "out", "--grid", "q9"], "unknown grid 'q9'")],
    ids=lambda v: v if isinstance(v, str) else " ".join(v),
)  # fmt: skip
def test_a_wrong_command_line_is_a_usage_error_in_two_lines(arguments, says, capsys):
    assert cli.run(arguments) == errors.UsageError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert says in err.splitlines()[0]
    assert "internal error" not in err
    assert len(err.splitlines()) == 2


def test_the_version_needs_no_command_and_no_command_gives_help(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr() == (f"edgeqaf {__version__}\n", "")
    assert cli.run([]) in (0, errors.UsageError.exit_code)
    out, err = capsys.readouterr()
    assert "quantize" in out
    assert err == ""


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [(KeyboardInterrupt(), 7, "interrupted"), (MemoryError(), 5, "memory is exhausted"),
     (OSError(28, "No space left on device"), 5, "No space left"), (ZeroDivisionError("x"), 1, "ZeroDivisionError: x")],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_other_errors_become_two_lines_too(error, code, says, monkeypatch, capsys):
    def application():
        def fail(**_):
            raise error

        return fail

    monkeypatch.setattr(cli, "application", application)
    assert cli.run([]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert len(err.splitlines()) == 2
    assert "Traceback" not in err
