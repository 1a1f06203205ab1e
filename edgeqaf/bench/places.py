"""Where the bench finds models and data, and where it keeps results. Data is no part of the package."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeqaf import plugins
from edgeqaf.bench.cell import FLOAT
from edgeqaf.bench.task import BenchTask
from edgeqaf.errors import Refused
from edgeqaf.protocols import RuntimeOptions

CHECKOUT = Path(__file__).resolve().parents[2]
BESIDE = CHECKOUT.parent / "shared"
SOURCES = {
    "storyteller-6m": "examples/storyteller-6m of a checkout of edgeqaf",
    "tinystories656k": "a Llama of 656,000 parameters in the Hugging Face layout (raincandy-u/TinyStories-656K)",
}


@dataclass(frozen=True)
class Places:
    """data: folder with ``data/``. models: name -> Hugging Face folder. out: where cells are kept."""

    data: Path
    models: Mapping[str, Path]
    out: Path
    runtime: RuntimeOptions

    @property
    def cells(self) -> Path:
        return self.out / "cells"

    @property
    def scratch(self) -> Path:
        """Folders of cells in work; whatever is there when no bench runs was left by a killed one."""
        return self.out / "scratch"

    def base(self, model: str, grid: str) -> Path:
        """The base folder of a model on a grid; of `FLOAT`, the float model itself."""
        return self.models[model] if grid == FLOAT else self.out / "bases" / f"{model}.{grid}"


def data_folder(given: Path | None) -> Path:
    """The folder of ``--data``, by default the one named shared beside a checkout."""
    folder = given or BESIDE
    if not folder.is_dir():
        raise Refused(
            f"{folder} is not there" if given else "there is no folder of models and data beside a checkout",
            "pass --data FOLDER, with data/ and models/ in it; docs/benchmarks/README.md says what to fetch",
        )
    return folder


def models_of(names: Sequence[str], data: Path) -> dict[str, Path]:
    """name -> folder of each model, given by name or as a folder; Refused for one that is not there."""
    found: dict[str, Path] = {}
    for given in names:
        name = re.sub(r"[^\w-]", "_", Path(given).resolve().name if "/" in given else given)
        folders = [Path(given), data / "models" / given, CHECKOUT / "examples" / given]
        folder = next((f for f in folders if (f / "config.json").is_file()), None)
        if folder is None:
            fetch = SOURCES.get(given, "a model in the Hugging Face layout")
            raise Refused(f"no model {given}: no config.json in {folders[1]}", f"put there {fetch}")
        if name in found:
            raise Refused(f"{given} and {found[name]} are both called {name}", "rename one of the folders")
        found[name] = folder.resolve()
    return found


def require_data(tasks: Sequence[str], data: Path) -> None:
    """Refuse tasks whose files are not there, naming them and where they are from."""
    for name in tasks:
        task: BenchTask = plugins.find("tasks", name)
        missing = [need for need in task.needs if not ((data / need).is_file() or (CHECKOUT / need).is_file())]
        if missing:
            raise Refused(
                f"task {name}: {' and '.join(missing)} not in {data}",
                f"fetch {task.source}, or leave {name} out: --tasks",
            )
