"""Home commands: spoken wishes into ``action; device; room``; combinations held out are never trained on."""

import importlib.util
from pathlib import Path

from edgeqaf.bench.task import BenchTask
from edgeqaf.data import Row

SCRIPT = "examples/home_assistant.py"
CHECKOUT = Path(__file__).resolve().parents[3]


def read(folder: Path) -> tuple[list[Row], list[Row]]:
    """What the script of the examples makes; nothing is read from ``folder``."""
    spec = importlib.util.spec_from_file_location("home_assistant", CHECKOUT / SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return list(made.rows(False, 2000, 0)), list(made.rows(True, 600, 0))


task = BenchTask(
    title="home commands",
    kind="task",
    needs=(SCRIPT,),
    source="examples/home_assistant.py of a checkout of edgeqaf",
    read=read,
    metric="exact-match",
)
