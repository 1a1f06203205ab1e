"""ViGGO (Juraska et al., INLG 2019): a meaning representation of a video game, said in words."""

from collections.abc import Iterator
from pathlib import Path

from edgeqaf.bench.task import BenchTask, plain
from edgeqaf.data import Row, read_rows

TRAIN, VALID = "data/viggo/train.csv", "data/viggo/valid.csv"


def read(folder: Path) -> tuple[list[Row], list[Row]]:
    """The published training and validation sets."""
    return list(_rows(folder / TRAIN)), list(_rows(folder / VALID))


def _rows(file: Path) -> Iterator[Row]:
    for row in read_rows(file, ("mr", "ref")):
        yield {"prompt": f"{plain(row['prompt'], ' or ')} - ", "completion": plain(row["completion"], " or ")}


task = BenchTask(
    title="ViGGO",
    kind="task",
    needs=(TRAIN, VALID),
    source="data/video_game of github.com/jjuraska/data2text-nlg (CC BY-SA 4.0)",
    read=read,
    metric="rouge",
)
