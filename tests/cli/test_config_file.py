"""`-c edgeqaf.yaml`: keys are flag names, flags win, and what is not understood is an error."""

from pathlib import Path
from typing import Any

import pytest


def write(text: str | bytes) -> str:
    Path("edgeqaf.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return "edgeqaf.yaml"


FAULTS: dict[str, tuple[str | bytes, str]] = {
    "near": ("stpes: 3", "unknown key 'stpes'"),
    "suggested": ("stpes: 3", "did you mean steps?"),
    "far": ("zzz: 3", "known: data, output, method"),
    "short": ("o: out", "unknown key 'o'"),
    "nested config": ("config: other.yaml", "unknown key 'config'"),
    "number": ("3: 4", "unknown key 3"),
    "list": ("- steps", "holds a YAML list"),
    "twice": ("steps: 1\nsteps: 2", "key 'steps' is there twice"),
    "twice in two spellings": ("max_length: 9\nmax-length: 8", "key 'max-length' is there twice"),
    "malformed": ("a: [", "line 1, column 5"),
    "not text": (b"\xff\xfe\x00", "edgeqaf.yaml"),
    "code": ('steps: !!python/object/apply:os.mkdir ["owned"]', "could not determine a constructor"),
    "wrong type": ("steps: many", "'--steps'"),
    "out of range": ("holdout: 0.9", "'--holdout'"),
    "wrong option of the method": ("set: {omgea: 1}", "option omgea"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_understood_is_refused(fault: str, shell: Any, road: Any) -> None:
    text, says = FAULTS[fault]
    shell.refused(2, "finetune", road.base, "--data", road.data, "-o", "out", "-c", write(text), says=says)


def test_a_missing_file_is_named(shell: Any, road: Any) -> None:
    line = ("finetune", road.base, "--data", road.data, "-o", "out")
    shell.refused(2, *line, "-c", "no.yaml", says="no.yaml")
    shell.refused(2, *line, "-c", road.base, says="Is a directory")


def test_a_file_equals_the_flags_and_flags_win(shell: Any, road: Any) -> None:
    flags = ("--steps", 4, "--batch", 4, "--lr", 0.5, "--threads", 1, "--max-length", 48)
    shell.ok("finetune", road.base, "--data", road.data, "-o", "flags", *flags)
    text = f"data: {road.data}\nsteps: 9\nbatch: 4\nset: {{lr: 0.5}}\nthreads: 1\nmax_length: 48\noutput: no"
    shell.ok("finetune", road.base, "-c", write(text), "-o", "file", "--steps", 4)
    assert not Path("no").exists()
    for name in ("adapter_model.safetensors", "log.jsonl", "edgeqaf.json"):
        assert Path("file", name).read_bytes() == Path("flags", name).read_bytes(), name
