"""The command line: assembled from ``edgeqaf/commands``, one file a verb; errors become two lines.

Exit codes: 0 ok, 2 usage, 3 input refused, 4 verification failed, 5 resources, 6 runtime absent,
7 interrupted, 1 a defect of ours. Nothing heavy is imported until a command runs.
"""

import errno
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any

import click
import typer

from edgeqaf import __version__, plugins
from edgeqaf.errors import EdgeqafError, Interrupted

ORDER = (
    "demo", "quantize", "finetune", "merge", "export", "verify", "eval",
    "inspect", "diff", "report", "devices", "deploy", "doctor",
)  # fmt: skip

_verbose = False


def application() -> typer.Typer:
    """The typer app with every command found on disk: a function becomes a verb, a Typer a group."""
    app = typer.Typer(
        name="edgeqaf",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Fine-tune on the quantization grid; ship, and prove, the very integers that were tuned.",
    )
    app.callback()(_globals)
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
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line in this process and return its exit code; never raises."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not _verbose:
        warnings.simplefilter("ignore")
    try:
        result = application()(args=None if arguments is None else list(arguments), standalone_mode=False)
        return result if isinstance(result, int) else 0
    except EdgeqafError as error:
        return _fail(error.cause, error.remedy, error.exit_code)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        return _fail(
            error.format_message(), f"see: {context.command_path} --help" if context else "see: edgeqaf --help", 2
        )
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _fail("interrupted", "nothing half-written was left; run the command again", Interrupted.exit_code)
    except MemoryError:
        return _fail("memory is exhausted", "close other programs, or use a machine with more memory", 5)
    except OSError as error:
        return _fail(f"{error.filename or 'file system'}: {error.strerror or error}", _os_remedy(error), 5)
    except Exception as error:
        if _verbose:
            traceback.print_exc()
        return _fail(
            f"internal error: {type(error).__name__}: {error}", "run with -v for the traceback, and report it", 1
        )


def _globals(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show warnings, library logs and tracebacks.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    global _verbose
    _verbose = verbose
    if version:
        sys.stdout.write(f"edgeqaf {__version__}\n")
        raise typer.Exit


def _fail(cause: str, remedy: str, code: int) -> int:
    one_line = " ".join(str(cause).split())
    sys.stderr.write(f"error: {one_line}\n")
    if remedy:
        sys.stderr.write(f"  fix: {' '.join(remedy.split())}\n")
    return code


def _os_remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space on the disk; nothing half-written was left"
    return "check the path and its permissions"


def _terminate(number: int, frame: FrameType | None) -> Any:
    raise Interrupted("terminated by a signal", "run the command again; finished parts are kept")
