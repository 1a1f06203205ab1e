"""The guide's programs, each run where a reader would run it, write the same text."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
GUIDE = CHECKOUT / "docs" / "guides" / "export.md"


def program(mark: str) -> str:
    found = re.search(rf"^<!-- {mark} -->\n```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.M | re.S)
    assert found, mark
    return found[1]


def written(mark: str, python: str, dist: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([python, "-c", program(mark)], cwd=dist, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize("consumer", ["optimum", "genai"])
def test_every_consumer_writes_what_a_plain_session_writes(consumer: str, storyteller: Path, tmp_path: Path):
    home = CHECKOUT / ".venv" / consumer
    if not (home / "ready").is_file():
        pytest.skip(f"no {consumer} at {home}: make consumers")
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "onnx").symlink_to(storyteller)
    text = written("onnxruntime", sys.executable, tmp_path)
    assert len(text.split()) > 10
    assert written(consumer, str(home / "bin" / "python"), tmp_path) == text
