"""Recovery: stories like those the models were trained on; what quantization took is to be won back."""

from pathlib import Path

from edgeqaf.bench.task import BenchTask
from edgeqaf.data import Row
from edgeqaf.data.reading import read_text

FILE = "data/tinystories_10k.txt"
TRAIN, HELD_OUT = 3000, 400  # stories


def read(folder: Path) -> tuple[list[Row], list[Row]]:
    """Stories from the beginning of the file; held out are those at its end."""
    stories = [story.strip() for story in read_text(str(folder / FILE)).split("<|endoftext|>")]
    rows = [{"text": story} for story in stories if len(story) > 200]
    return list(rows[:TRAIN]), list(rows[-HELD_OUT:])


task = BenchTask(
    title="TinyStories (recovery)",
    kind="recovery",
    needs=(FILE,),
    source="TinyStories (arXiv 2305.07759), 10,000 stories or more, each ended by a line <|endoftext|>",
    read=read,
)
