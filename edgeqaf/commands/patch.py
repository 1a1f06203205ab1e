"""patch: put a task into a shipped model file, and take it out again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeqaf.options import Json

if TYPE_CHECKING:  # the command line answers before numpy is loaded
    from edgeqaf.patch.target import State

command = typer.Typer(help="Put a task into a shipped GGUF file, in place, or take it out again.", no_args_is_help=True)

Model = Annotated[Path, typer.Argument(help="GGUF file; it is changed in place.")]
File = Annotated[Path, typer.Argument(help="Task patch, from edgeqaf diff -o.")]
GO_ON = "run edgeqaf patch apply or revert with this patch: either goes on from here"


@command.command()
def apply(model: Model, patch: File, json: Json = False) -> None:
    """Put the patch in: the model becomes the tuned one, bit for bit. A kill leaves work to go on with."""
    _move(model, patch, put=True, json=json)


@command.command()
def revert(model: Model, patch: File, json: Json = False) -> None:
    """Take the patch out: the file has its former bytes again."""
    _move(model, patch, put=False, json=json)


@command.command()
def verify(
    model: Annotated[Path, typer.Argument(help="GGUF file; it is only read.")], patch: File, json: Json = False
) -> None:
    """Say whether the patch is in; exit 4 if the file is neither the model before it nor the one after."""
    from edgeqaf.console import emit, say
    from edgeqaf.errors import VerificationFailed
    from edgeqaf.patch.file import Patch
    from edgeqaf.patch.target import Target

    opened = Patch(patch)
    with Target(model, opened, writable=False) as target:
        state = target.check()
    say(f"{model}: {patch.name} is {state.name}")
    if json:
        emit({"state": state.name, "before": state.before, "after": state.after, "differing": list(state.differing)})
    if state.name == "another":
        raise VerificationFailed(*_other(model, patch, state, opened.before))
    if state.name == "interrupted":
        raise VerificationFailed(
            f"{model}: the patch was cut short, and no runtime opens the file until it is whole", GO_ON
        )


def _move(model: Path, patch: Path, *, put: bool, json: bool) -> None:
    from edgeqaf.console import emit, say
    from edgeqaf.errors import Interrupted, OutOfResources, Refused
    from edgeqaf.patch.file import Patch
    from edgeqaf.patch.target import Target

    opened = Patch(patch)
    root = opened.after if put else opened.before
    with Target(model, opened) as target:
        state = target.check()
        if state.name == "another":
            raise Refused(*_other(model, patch, state, opened.before))
        wanted = "applied" if put else "not applied"
        if state.name != wanted:
            try:
                target.move(put=put)
            except KeyboardInterrupt:
                raise Interrupted(f"{model}: the patch was cut short", GO_ON) from None
            except OSError as error:
                raise OutOfResources(f"{model}: the patch was cut short ({error.strerror})", GO_ON) from error
    moved = sum(entry["moved"] for entry in opened.tensors.values())
    say(f"{model}: {patch.name} {'was already' if state.name == wanted else 'is'} {wanted}, root {root[:12]}")
    say(f"{moved:,} codes in {len(opened.tensors)} tensors")
    if json:
        emit({"model": str(model), "was": state.name, "is": wanted, "root": root, "codes": moved})


def _other(model: Path, patch: Path, state: "State", root: str) -> tuple[str, str]:
    """Cause and remedy for a file that the patch is not for."""
    differing = f"; {state.differing[0]} is the first of {len(state.differing)} that differ" if state.differing else ""
    return (
        f"{model}: {patch.name} is for root {root[:12]}, this file without it is {state.before[:12]}{differing}",
        "take the file that the patch was made for; if another patch is in it, revert that one first",
    )
