"""The command line: assembled from ``edgeqaf/commands``, one file a verb; errors become two lines.

Exit codes: 0 ok, 2 usage, 3 input refused, 4 verification failed, 5 resources, 6 runtime absent,
7 interrupted, 1 a defect of ours. Nothing heavy is imported until a command runs.
"""

import errno
import importlib
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgeqaf import __version__, plugins, ranks
from edgeqaf.errors import EdgeqafError, Interrupted, UsageError

ORDER = (
    "demo", "quantize", "finetune", "merge", "export", "verify", "eval",
    "inspect", "diff", "patch", "report", "devices", "deploy", "doctor", "config", "bench",
)  # fmt: skip

_verbose = False


class _Verbs(TyperGroup):
    """Typer's group, but interrupts and closed pipes come out as they are: `run` decides what they mean."""

    def main(self, *arguments: Any, args: Sequence[str] | None = None, **extra: Any) -> Any:
        with self.make_context("edgeqaf", list(sys.argv[1:] if args is None else args)) as context:
            return self.invoke(context)


def application() -> typer.Typer:
    """The typer app with every command found on disk: a function becomes a verb, a Typer a group."""
    app = typer.Typer(
        name="edgeqaf",
        cls=_Verbs,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Fine-tune on the quantization grid; ship, and prove, the very integers that were tuned.",
    )
    app.callback(invoke_without_command=True)(_globals)
    found = plugins.names("commands")
    for name in sorted(found, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n)):
        command = importlib.import_module(f"edgeqaf.commands.{name}").command
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``edgeqaf`` script: run, and exit with the documented code."""
    for name in ("SIGTERM", "SIGHUP"):  # they end a command as Ctrl-C does: what is half-written is removed
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    if not ranks.first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # one rank speaks for all
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may hold what the terminal cannot show
    sys.exit(_flushed(run(arguments)))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line in this process and return its exit code; never raises."""
    # Threads that spin long while they wait starve each other on a busy machine (docs/log.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        result = application()(args=None if arguments is None else list(arguments), standalone_mode=False)
        return result if isinstance(result, int) else 0
    except EdgeqafError as error:
        return _fail(error.cause, error.remedy, error.exit_code)
    except typer.Exit as done:
        return done.exit_code
    except typer.TyperException as error:
        return _misused(error)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", "nothing half-written was left; run the command again", Interrupted.exit_code)
    except MemoryError:
        return _fail("memory is exhausted", "close other programs, or use a machine with more memory", 5)
    except BrokenPipeError:
        return Interrupted.exit_code  # whoever read our output is gone, as `head` is: there is no one to tell
    except OSError as error:
        return _fail(f"{error.filename or 'file system'}: {error.strerror or error}", _os_remedy(error), 5)
    except Exception as error:
        if _verbose:
            traceback.print_exc()
        return _fail(
            f"internal error: {type(error).__name__}: {error}", "run with -v for the traceback, and report it", 1
        )


def _globals(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show warnings and tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    global _verbose
    _verbose = verbose
    if not verbose:
        warnings.simplefilter("ignore")
    if version:
        sys.stdout.write(f"edgeqaf {__version__}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")
        raise typer.Exit(UsageError.exit_code)


def _fail(cause: str, remedy: str, code: int) -> int:
    if getattr(sys.exception(), "echo", False):
        return code  # another rank says it
    one_line = " ".join(str(cause).split())
    sys.stderr.write(f"error: {one_line}\n")
    if remedy:
        sys.stderr.write(f"  fix: {' '.join(remedy.split())}\n")
    return code


def _misused(error: typer.TyperException) -> int:
    message = error.format_message()
    if message:  # it is empty where a group without a command has shown its help
        context = getattr(error, "ctx", None)
        _fail(message, f"see: {context.command_path if context else 'edgeqaf'} --help", UsageError.exit_code)
    return UsageError.exit_code


def _flushed(code: int) -> int:
    """Write out what stdout still holds; return ``code``, or that of the failure to do so."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own flush
        if isinstance(error, BrokenPipeError):
            return code or Interrupted.exit_code
        return code or _fail(f"standard output: {error.strerror}", _os_remedy(error), 5)
    return code


def _os_remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space on the disk; nothing half-written was left"
    return "check the path and its permissions"
