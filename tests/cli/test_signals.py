"""Interrupts, closed pipes and full devices, each in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

MAIN = "from edgeqaf.cli import main\nif __name__ == '__main__':\n    main()"
TUNE = ("--batch", 4, "--lr", 0.5, "--threads", 1, "--max-length", 48, "--save-every", 1000)
PATIENCE = 300  # seconds that a command may take on a busy machine: no law, only an end


def start(*arguments: object, script: str = MAIN, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    line = [sys.executable, "-c", script, *map(str, arguments)]

    def listen() -> None:  # signals may be ignored where the tests run in the background, and a child inherits that
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    return subprocess.Popen(line, preexec_fn=listen, **{**pipes, **options})


def test_an_interrupted_run_resumes_to_the_same_bits(shell: Any, road: Any) -> None:
    line = ("finetune", road.base, "--data", road.data, "--steps", 60, *TUNE)
    process = start(*line, "-o", "cut")
    log = Path("cut", "log.jsonl")
    while process.poll() is None and not (log.is_file() and log.read_text().count("\n") >= 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 7, err
    assert "of 60" in err.splitlines()[0]
    assert err.splitlines()[1] == "  fix: run the same command with --resume"
    assert len(os.listdir("cut/checkpoints")) == 1
    assert not Path("cut", "adapter_model.safetensors").exists()
    shell.refused(3, "merge", "cut", "-o", "merged", says="cut is not finished")
    shell.refused(3, *line, "-o", "cut", "--resume", "--seed", 1, says="was started with seed = 0, not 1")
    shell.ok(*line, "-o", "cut", "--resume")
    shell.ok(*line, "-o", "whole")
    for name in ("adapter_model.safetensors", "log.jsonl", "edgeqaf.json"):
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes(), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_while_writing_leaves_nothing(number: signal.Signals, shell: Any, tiny_float_model: Path) -> None:
    script = f"""
import os, signal, time
from edgeqaf import weightsfile
class Interrupted(weightsfile.TensorWriter):
    def add(self, name, array):
        super().add(name, array)
        assert os.listdir(".")[0].endswith(".part")
        os.kill(os.getpid(), {int(number)})
        time.sleep(600)
weightsfile.TensorWriter = Interrupted
{MAIN}"""
    process = start("quantize", tiny_float_model, "-o", "base", script=script)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (7, "")
    assert err.splitlines()[0] == "error: interrupted"
    assert shell.files() == {}


@pytest.mark.parametrize("moment", ["layerwise", "record"])
def test_a_merge_that_is_killed_leaves_nothing(moment: str, shell: Any, road: Any) -> None:
    """Interrupted while the logits are computed, when all is written but the manifest."""
    script = f"""
import os, signal, time
from edgeqaf import witness
def interrupted(*arguments, **more):
    assert os.listdir(".")[0].endswith(".part")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)
witness.{moment} = interrupted
{MAIN}"""
    process = start("merge", road.run, "--base", road.base, "-o", "merged", script=script)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 7
    assert err.splitlines()[0] == "error: interrupted"
    assert shell.files() == {}


@pytest.mark.parametrize("verb", ["inspect", "doctor"])
def test_a_reader_that_leaves_ends_the_command_quietly(verb: str, shell: Any, road: Any) -> None:
    process = start(verb, *([road.base] if verb == "inspect" else []))
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    assert process.stderr.read() == ""
    assert process.wait(timeout=PATIENCE) == 7
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_output_that_cannot_be_written_is_an_error(road: Any) -> None:
    with open("/dev/full", "w") as full:
        process = start("inspect", road.base, "--json", stdout=full)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 5
    assert "No space left on device" in err.splitlines()[0]
    assert len(err.splitlines()) == 2


def test_a_name_that_the_terminal_cannot_show_is_no_error(shell: Any, tiny_float_model: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONIOENCODING": "ascii"}
    process = start("quantize", tiny_float_model, "-o", "ünï", env=environment)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert out.isascii()
    assert Path("ünï", "edgeqaf.json").is_file()
