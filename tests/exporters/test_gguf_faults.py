"""Files of other makers, which no seal protects: damage is refused, or the exported file has it too; never a crash."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf_files import GGML, given_back, write, write_least

from edgeqaf.imported import import_base
from exporters.gguf.artifact import StoredTensors


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_least(tmp_path_factory.mktemp("small") / "small.gguf")


def header_size(path: Path) -> int:
    return StoredTensors(path).files.parts[0].start


def test_cut_at_any_byte_it_is_refused(small, tmp_path):
    whole, cut = small.read_bytes(), tmp_path / "cut.gguf"
    assert given_back(small, tmp_path / "folder") == [whole]
    rng = np.random.default_rng(0)
    for size in [
        *range(header_size(small)),
        *rng.integers(header_size(small), len(whole), 100).tolist(),
        len(whole) - 1,
    ]:
        cut.write_bytes(whole[:size])
        assert given_back(cut, tmp_path / "folder") is None, size
    for more in (1, 31, 32, 4096):
        cut.write_bytes(whole + bytes(more))
        assert given_back(cut, tmp_path / "folder") is None, more


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_of_the_header_is_refused_or_comes_back(bit, small, tmp_path):
    whole, flipped = small.read_bytes(), tmp_path / "flipped.gguf"
    taken = 0
    for place in range(header_size(small)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        flipped.write_bytes(damaged)
        found = given_back(flipped, tmp_path / "folder")
        assert found is None or found == [damaged], place
        taken += found is not None
    assert 0 < taken < header_size(small) / 2  # names, types, shapes and counts are held against one another


def test_a_flipped_bit_of_the_data_is_refused_or_comes_back(small, tmp_path):
    whole, flipped = small.read_bytes(), tmp_path / "flipped.gguf"
    rng = np.random.default_rng(0)
    for place in rng.integers(header_size(small), len(whole), 300).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        flipped.write_bytes(damaged)
        found = given_back(flipped, tmp_path / "folder")
        assert found is None or found == [damaged], place


IMPORT = """
import os, signal, sys
from pathlib import Path
from edgeqaf import weightsfile
from edgeqaf.imported import import_base
class Killed(weightsfile.TensorWriter):
    def add_runs(self, name, dtype, runs):
        super().add_runs(name, dtype, runs)
        if name.startswith(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
weightsfile.TensorWriter = Killed
import_base(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("at", ["model.embed_tokens", "model.layers.1", "model.norm"])
def test_killed_while_it_imports_nothing_is_there_and_the_next_time_all_is(at, tmp_path):
    path, out = write(tmp_path / "m.gguf", [GGML.Q4_K, GGML.Q6_K]), tmp_path / "out"
    line = [sys.executable, "-c", IMPORT, str(path), str(out / "base"), at]
    assert (
        subprocess.run(line, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}).returncode
        == -signal.SIGKILL
    )
    assert [file.name for file in out.iterdir() if not file.name.startswith(".")] == []
    again = import_base(path, out / "base")
    assert again.root == import_base(path, tmp_path / "whole").root


def test_a_full_disk_leaves_nothing(tmp_path):
    path, out = write(tmp_path / "m.gguf", [GGML.Q4_K]), tmp_path / "out"
    script = "from edgeqaf.cli import main; main()"
    line = [sys.executable, "-c", script, "quantize", str(path), "-o", str(out / "base")]
    limits = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # noqa: E731
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, preexec_fn=limits)
    assert done.returncode == 5, done.stderr
    assert "the disk filled up while writing" in done.stderr
    assert list(out.iterdir()) == []
