"""`edgeqaf bench methods` on a tiny model: cells end to end, resumed, killed, carried over and reported."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeqaf import cli
from edgeqaf.bench import store

CHECKOUT = Path(__file__).resolve().parents[2]
SOME = ("--grids", "q4_0", "--tasks", "viggo", "--seeds", "0", "--steps", "12", "--methods", "codes,lora")


@pytest.fixture(scope="session")
def bench(data, tiny_float_model, llama_cpp):
    """A command line of the bench on that model, as arguments."""
    return lambda out, *more: ["bench", "methods", "-o", str(out), "--data", str(data),
                               "--models", str(tiny_float_model), *map(str, more)]  # fmt: skip


@pytest.fixture(scope="session")
def ran(bench, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "out"
    assert cli.run(bench(out, *SOME)) == 0
    return out


def results(out):
    return {cell.contender: result for cell, result in map(store.load, (out / "cells").iterdir())}


def test_cells_are_scored_in_pytorch_and_from_both_artifacts(ran):
    found = results(ran)
    assert found.keys() == {"codes", "lora"}
    stored, lora = found["codes"]["scores"]["stored"], found["lora"]["scores"]
    assert stored.keys() == lora["requantized"].keys() == {"torch", "llama_cpp", "onnxruntime"}
    assert lora["float"].keys() == {"torch"}
    for runtime in ("llama_cpp", "onnxruntime"):
        assert abs(stored[runtime]["loss"] - stored["torch"]["loss"]) < 0.05
        assert 0 <= stored[runtime]["rouge_l"] <= 1
    assert found["codes"]["root"] != found["lora"]["root"]


def test_both_trained_on_the_same_tokens_and_moved(ran):
    found = results(ran)
    assert found["codes"]["batches"] == found["lora"]["batches"]
    assert found["codes"]["tokens"] == found["lora"]["tokens"] > 0
    for result in found.values():
        assert 0 < result["moved"]["moved"] < result["moved"]["weights"]
        assert sum(layer[1] for layer in result["layers"].values()) == result["moved"]["moved"]
        assert [step for step, _ in result["training"]] == list(range(1, 13))
        assert result["held_out"][-1] == [12, next(iter(result["scores"].values()))["torch"]["loss"]]
        assert result["state_bytes"] >= result["trained_bytes"] > 0
        assert min(result["step_ms"].values()) > 0


def test_residuals_are_measured_from_the_float_model(bench, tmp_path):
    """At a step the codes that follow are those which rounding had left near the middle between two."""
    some = ("--grids", "q4_0", "--tasks", "recovery", "--seeds", "0", "--steps", "2")
    assert cli.run(bench(tmp_path / "out", *some, "--methods", "lowrank,lowrank-residual")) == 0
    found = results(tmp_path / "out")
    assert found["lowrank"]["moved"]["moved"] == 0
    assert 0 < found["lowrank-residual"]["moved"]["moved"] < 0.1 * found["lowrank-residual"]["moved"]["weights"]


def test_what_is_done_is_not_done_again(ran, bench, capsys):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (ran / "cells").iterdir()}
    assert cli.run(bench(ran, *SOME, "--json")) == 0
    assert json.loads(capsys.readouterr().out) == {"before": 2, "cells": 2, "computed": 0, "failed": {}}
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (ran / "cells").iterdir()} == before
    assert sorted(p.name for p in ran.iterdir()) == [".lock", "bases", "cells"]


def test_cells_are_listed_with_what_is_done(ran, bench, capsys):
    assert cli.run(bench(ran, *SOME, "--seeds", "0,1", "--list", "--json")) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert sorted(cells.values()) == [False, False, True, True]
    assert all("seed0" in key for key, done in cells.items() if done)


def test_a_report_is_made_and_another_bench_goes_on_from_it(ran, bench, tmp_path, capsys):
    assert cli.run(bench(ran, *SOME, "--report", tmp_path / "report", "--json")) == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["cells"], written["done"]) == (2, 2)
    assert "LoRA r16, merged and quantized again" in (tmp_path / "report" / "methods.md").read_text("utf-8")
    held = tmp_path / "report" / "methods.json"
    assert cli.run(bench(tmp_path / "out", *SOME, "--from", held, "--json")) == 0
    assert json.loads(capsys.readouterr().out) == {"before": 2, "cells": 2, "computed": 0, "failed": {}}
    same = [sorted((out / "cells").iterdir()) for out in (ran, tmp_path / "out")]
    assert [json.loads(p.read_bytes()) for p in same[0]] == [json.loads(p.read_bytes()) for p in same[1]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_bench_leaves_no_half_cell(bench, tmp_path, number):
    line = bench(tmp_path / "out", *SOME, "--steps", 100000)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "edgeqaf", *line], cwd=CHECKOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    for _ in range(600):
        if (tmp_path / "out" / "bases").is_dir() and any((tmp_path / "out" / "bases").iterdir()):
            break
        time.sleep(0.1)
    time.sleep(3)  # the first cell has begun
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert (process.returncode, said.splitlines()[0]) == (7, "error: interrupted")
    assert not (tmp_path / "out" / "cells").exists()
    with store.claimed(tmp_path / "out"):
        assert not (tmp_path / "out" / "scratch").exists()


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (("--seeds", "x"), 2, "--seeds x are no whole numbers"),
        (("--plan", "slow"), 2, "unknown plan 'slow'"),
        (("--models", "nobody"), 3, "no model nobody"),
        (("--data", "nowhere"), 3, "nowhere is not there"),
        (("--from", "nothing.json"), 3, "nothing.json does not exist"),
        (("--report", "report"), 3, "none of 2 cells is done in"),
        (("--llama-lib", "."), 6, "llama_cpp is absent"),
    ],
)
def test_what_cannot_be_is_refused_in_two_lines(bench, tmp_path, monkeypatch, capsys, more, code, says):
    monkeypatch.chdir(tmp_path)
    line = bench("out", *SOME)
    assert cli.run([*line, *more]) == code
    cause, remedy = capsys.readouterr().err.splitlines()
    assert says in cause
    assert remedy.startswith("  fix: ")
    assert not list(tmp_path.iterdir())
