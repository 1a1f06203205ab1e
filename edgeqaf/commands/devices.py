"""``edgeqaf devices``: which devices there are profiles of, and whether a model fits one of them."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqaf import console
from edgeqaf.errors import OutOfResources
from edgeqaf.options import Json

command = typer.Typer(name="devices", no_args_is_help=True, help="Device profiles, and whether a model fits one.")


@command.command("list")
def list_profiles(json: Json = False) -> None:
    """List the device profiles."""
    from devices import profile

    profiles = [profile.find(name) for name in profile.names()]
    if json:
        console.emit({"devices": [{"name": p.name, "title": p.title, "kind": p.kind} for p in profiles]})
        return
    rows = [(p.name, p.title, _mib(p.memory_bytes.value), _mib(p.budget_bytes), _value(p.isa)) for p in profiles]
    console.table("Devices", ("name", "device", "memory", "left to an app", "instruction sets"), rows)


@command.command()
def show(
    name: Annotated[str, typer.Argument(help="A profile's name; a unique beginning is enough.")],
    json: Json = False,
) -> None:
    """Show every figure of one profile with its source."""
    from devices import profile

    found = profile.find(name)
    if json:
        console.emit(asdict(found) | {"budget_bytes": found.budget_bytes})
        return
    rows = [(entry, _value(figure), _provenance(figure)) for entry, figure in found.figures()]
    console.table(f"{found.name}: {found.title}", ("figure", "value", "source"), rows)


@command.command()
def fit(
    model: Annotated[Path, typer.Argument(help="A model folder, a dist folder, or a Hugging Face float folder.")],
    device: Annotated[str, typer.Option("--device", "-d", help="A profile's name; see `edgeqaf devices list`.")],
    context: Annotated[int | None, typer.Option(help="Tokens of context; default: the profile's.")] = None,
    artifact: Annotated[str, typer.Option("--format", help="The artifact to deploy: gguf or onnx.")] = "gguf",
    grid: Annotated[str, typer.Option(help="For a float model: the grid to plan for.")] = "q4_0",
    json: Json = False,
) -> None:
    """Tell whether a model fits a device's memory; exit code 5 if it does not."""
    from devices import fit as fitting
    from devices import profile, size

    found, sized = profile.find(device), size.size(model, artifact, grid)
    result = fitting.fits(sized, found, context)
    if json:
        console.emit(asdict(result) | {"fits": result.fits, "total_bytes": result.total_bytes, "origin": sized.origin})
    else:
        _print_fit(result, found, sized)
    if not result.fits:
        raise OutOfResources(
            f"{model} does not fit {found.name}: {'; '.join(result.reasons)}",
            "choose a smaller model, a shorter --context, another --format or a larger device",
        )


def _print_fit(result: Any, profile: Any, sized: Any) -> None:
    """Of a `devices.fit.Fit`, `devices.profile.DeviceProfile`, `devices.size.Sized`."""
    rows = [(part, _mib(count)) for part, count in result.bytes_by_part.items()]
    rows += [("total", _mib(result.total_bytes)), ("left to an app", _mib(result.budget_bytes))]
    console.say(f"{result.format} on {profile.title}, {result.context_tokens} tokens of context")
    console.table("", ("part", "memory"), rows)
    console.say(f"weights: {sized.origin}")
    bandwidth = f"{profile.bandwidth_bytes_per_s.value / 1e9:.1f} GB/s"
    console.say(
        f"speed: roofline bound {result.tokens_per_second_bound:.1f} tokens/s ({bandwidth} over the weights); "
        "lower in practice, unless the weights stay in a cache"
    )
    for note in result.notes:
        console.say(f"note: {note}")
    if result.fits:
        console.say(f"fits: {_mib(result.budget_bytes - result.total_bytes)} to spare")


def _value(figure: Any) -> str:
    return ", ".join(map(str, figure.value)) if isinstance(figure.value, tuple) else str(figure.value)


def _provenance(figure: Any) -> str:
    guess = f"; estimate: {figure.estimate}" if figure.estimate else ""
    return f"{figure.source} ({figure.date}){guess}"


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
