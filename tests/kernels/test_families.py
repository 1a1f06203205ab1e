"""The folder ``equality``, in processes that have what its kernels need: Triton's interpreter, or no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent / "equality"
FAMILIES = {"cuda": {"TRITON_INTERPRET": "1"}}
if torch.cuda.is_available():  # without a GPU they run where this test does
    FAMILIES["cpu"] = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_gives_its_references_bits(family: str) -> None:
    if family == "cuda":
        pytest.importorskip("triton", reason="Triton is not installed; torch's CUDA builds bring it")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)],
        env={**os.environ, **FAMILIES[family]}, capture_output=True, text=True, check=False, cwd=FOLDER.parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
