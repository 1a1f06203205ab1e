"""WikiSQL (arXiv 1709.00103) as mlx-examples renders it: a table's columns and a question, answered by a query."""

from collections.abc import Iterator
from pathlib import Path

from edgeqaf.bench.task import BenchTask, plain
from edgeqaf.data import Row, read_rows

FILES = ("data/wikisql_mlx/train.jsonl", "data/wikisql_mlx/valid.jsonl")
HELD_OUT = 300  # of the training file's last rows, as the other has but 100


def read(folder: Path) -> tuple[list[Row], list[Row]]:
    """Tables of held-out rows are not trained on."""
    train, valid = (list(_rows(folder / file)) for file in FILES)
    held_out = [*valid, *train[-HELD_OUT:]]
    tables = {_table(row) for row in held_out}
    return [row for row in train[:-HELD_OUT] if _table(row) not in tables], held_out


def _rows(file: Path) -> Iterator[Row]:
    for row in read_rows(file):
        question, _, answer = row["text"].rpartition("\nA: ")
        yield {"prompt": f"{plain(question, ' or ')}\nA: ", "completion": plain(answer, " or ")}


def _table(row: Row) -> str:
    return str(row["prompt"]).partition("\n")[0]


task = BenchTask(
    title="WikiSQL",
    kind="task",
    needs=FILES,
    source="lora/data of github.com/ml-explore/mlx-examples (MIT; WikiSQL BSD-3-Clause)",
    read=read,
    metric="exact-match",
)
