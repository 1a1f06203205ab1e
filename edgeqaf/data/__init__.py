"""Training and test data: rows in, token ids with a loss mask out.

sources/     one file per kind of source: each yields raw rows
reading.py   which source a name means; every row of it, normal or refused by its place
rows.py      the shapes a row may have
chat.py      conversations, written by the model's own template
examples.py  rows to token ids with labels; prompts and answers to score
split.py     what is trained on, what is held out, what is left out and why
batches.py   examples to tensors, padded or packed (torch)
"""

from edgeqaf.data.examples import IGNORED, Example, Task, tasks, tokenize
from edgeqaf.data.reading import read_rows
from edgeqaf.data.rows import Row

__all__ = ["IGNORED", "Example", "Row", "Task", "read_rows", "tasks", "tokenize"]
