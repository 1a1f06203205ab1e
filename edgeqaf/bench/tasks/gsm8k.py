"""GSM8K (arXiv 2110.14168): sums told as stories, worked out in words; the number at the end is compared."""

import re
from pathlib import Path

from edgeqaf.bench.task import BenchTask, plain
from edgeqaf.data import Row, read_rows

FILE = "data/gsm8k/train.jsonl"
HELD_OUT = 700  # of its last rows
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def read(folder: Path) -> tuple[list[Row], list[Row]]:
    """Answers without the calculator's notes, ``Answer: `` for ``#### ``."""
    rows: list[Row] = [
        {"prompt": f"{plain(row['prompt'])}\n", "completion": _spoken(row["completion"])}
        for row in read_rows(folder / FILE, ("question", "answer"))
    ]
    return rows[:-HELD_OUT], rows[-HELD_OUT:]


def final_number(answer: str) -> str:
    """The last number of an answer, without the commas in it; empty where there is none."""
    found = NUMBER.findall(answer)
    return found[-1].replace(",", "") if found else ""


def _spoken(answer: str) -> str:
    return plain(re.sub(r"<<[^>]*>>", "", answer).replace("####", "Answer:"))


task = BenchTask(
    title="GSM8K",
    kind="task",
    needs=(FILE,),
    source="grade_school_math/data of github.com/openai/grade-school-math (MIT)",
    read=read,
    metric="exact-match",
    extract=final_number,
)
