"""Shakespeare: text of a kind that the models have never seen; the last tenth is held out."""

from pathlib import Path

from edgeqaf.bench.task import BenchTask
from edgeqaf.data import Row
from edgeqaf.data.reading import read_text

FILE = "data/tinyshakespeare.txt"


def read(folder: Path) -> tuple[list[Row], list[Row]]:
    """One long text on either side."""
    text = read_text(str(folder / FILE))
    cut = text.index("\n\n", len(text) * 9 // 10)
    return [{"text": text[:cut]}], [{"text": text[cut:].strip()}]


task = BenchTask(
    title="Shakespeare (style)",
    kind="style",
    needs=(FILE,),
    source="data/tinyshakespeare/input.txt of github.com/karpathy/char-rnn",
    read=read,
)
