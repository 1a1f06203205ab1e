"""A folder of data in the shapes that the tasks read, written here; results that no run made, for the report."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeqaf.bench.cell import Cell
from edgeqaf.bench.contenders import CONTENDERS, FULL, FULL_LINEARS, UNTUNED
from edgeqaf.bench.plans import select
from edgeqaf.protocols import RuntimeOptions

GENRES = ("racing", "puzzle", "sport", "story", "card")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside")
    for place in ("viggo", "wikisql_mlx", "gsm8k"):
        (folder / "data" / place).mkdir(parents=True)
    for name, first, count in (("train", 0, 60), ("valid", 55, 60)):  # five meanings are on both sides
        with (folder / "data" / "viggo" / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("mr", "ref"))
            for i in range(first, first + count):
                mr = f"inform(name[Game {i}], genres[{GENRES[i % 5]}/other], available[no])"
                rows.writerow((mr, f"Game {i} is a {GENRES[i % 5]} game (you can not buy it)."))
    for name, tables in (("train", 200), ("valid", 10)):
        lines = [
            {"text": f"table: 1-{name}-{t}\ncolumns: Name, Year/Place\nQ: where was {n}?\nA: SELECT Year/Place = '{n}'"}
            for t in range(tables) for n in ("Ann", "Ben")
        ]  # fmt: skip
        write_lines(folder / "data" / "wikisql_mlx" / f"{name}.jsonl", lines)
    sums = [{"question": f"What is {i} and 1?", "answer": f"{i}+1=<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1:,}"}
            for i in range(900, 1660)]  # fmt: skip
    write_lines(folder / "data" / "gsm8k" / "train.jsonl", sums)
    stories = "\n<|endoftext|>\n".join(f"Day {i}. {story(i)}" for i in range(420))
    (folder / "data" / "tinystories_10k.txt").write_text(stories, "utf-8")
    play = "\n\n".join(f"LORD {i}:\n{story(i)}" for i in range(80))
    (folder / "data" / "tinyshakespeare.txt").write_text(play, "utf-8")
    return folder


def story(number: int) -> str:
    """One of many that differ everywhere."""
    return " ".join(f"Tom saw {number * 100 + n} red boats on the lake and told his mother." for n in range(12))


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture(scope="session")
def llama_cpp() -> None:
    """Skips where llama.cpp is not installed: every cell of the bench is scored in it."""
    from edgeqaf import plugins

    found = plugins.find("runtimes", "llama_cpp").availability(RuntimeOptions(threads=1))
    if found.version is None:
        pytest.skip(f"llama.cpp is absent: {found.reason}")


@pytest.fixture
def results() -> Callable[..., dict[Cell, dict[str, Any]]]:
    """Results in the shape that cells have, of losses given by (contender, form): 2.0 where none is given."""

    def make(losses: dict[tuple[str, str], float] | None = None, **selection: Any) -> dict[Cell, dict[str, Any]]:
        cells = select("main", ["tinystories656k"], **selection)
        return {cell: dict(one_result(cell, losses or {})) for cell in cells}

    return make


def one_result(cell: Cell, losses: dict[tuple[str, str], float]) -> Iterator[tuple[str, Any]]:
    contender = CONTENDERS[cell.contender]
    baseline = cell.contender in ("lora", "q_bara")
    forms = (
        {"float": ["torch"], "requantized": ["torch", "llama_cpp"]} if baseline else {"stored": ["torch", "llama_cpp"]}
    )
    if cell.grid == "float32":
        forms = {"float": ["torch"]}
    if cell.contender in (FULL, FULL_LINEARS):
        forms |= {"quantized q4_0": ["torch"], "quantized q3_0": ["torch"]}
    shift = {"torch": 0.0, "llama_cpp": 0.001}
    loss = {form: losses.get((cell.contender, form), 2.0) + 0.01 * cell.seed for form in forms}
    yield (
        "scores",
        {form: {r: {"loss": loss[form] + shift[r], "rouge_l": 0.25} for r in by} for form, by in forms.items()},
    )
    yield "lossless", not baseline
    yield "model_sha256", "0" * 64
    yield "tool", {"edgeqaf": "0"}
    if cell.contender == UNTUNED:
        return
    yield "batches", f"{cell.task} {cell.seed}"
    yield "step_ms", {"cpu": 10.0, "wall": 11.0}
    yield "trained_bytes", 1000
    yield "state_bytes", 2000
    yield "training", [[10, 3.0], [300, 2.0]]
    yield "held_out", [[100, 3.0], [300, 2.0]]
    if contender.method:
        counts = {"weights": 64, "moved": 16, "zeros": 0, "zeros_moved": 0, "scales": 2, "scales_moved": 0}
        yield "moved", counts
        if cell.seed == 0:
            yield "layers", {f"model.layers.{i}.mlp.up_proj.weight": list(counts.values()) for i in range(2)}
