"""Files of other makers, which no seal protects: damage is refused, or the exported file has it too; never a crash."""

import os
import resource
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import GGML, write

from edgeqaf.checkpoint import QModel
from edgeqaf.errors import EdgeqafError
from edgeqaf.imported import import_base
from exporters.gguf.artifact import StoredTensors
from exporters.gguf.base import ImportedTensors
from exporters.gguf.frame import Frame, save_frame

HIDDEN = 32


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least Llama that a file can hold: one layer, a header of some 1,300 bytes, no tokenizer."""
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(8)
    shapes = {"token_embd": (8, HIDDEN), "output_norm": (HIDDEN,)}
    shapes |= {f"blk.0.{name}_norm": (HIDDEN,) for name in ("attn", "ffn")}
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{name}": (HIDDEN, HIDDEN) for name in matrices}
    for name, shape in shapes.items():
        kind = GGML.F32 if len(shape) == 1 else GGML.Q4_0
        writer.add_tensor(
            f"{name}.weight", gguf.quantize(rng.standard_normal(shape).astype(np.float32), kind), raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def given_back(path: Path, folder: Path) -> bytes | None:
    """What the file comes back as, imported and exported; None where it is refused."""
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    try:
        stored = StoredTensors(path)
        save_frame(stored, folder)
        made = BytesIO()
        planned = Frame(QModel({}, ImportedTensors(stored), folder))
        planned.parts[0].write(made, planned.put)
    except EdgeqafError:
        return None
    return made.getvalue()


def header_size(path: Path) -> int:
    return StoredTensors(path).files.parts[0].start


def test_cut_at_any_byte_it_is_refused(small, tmp_path):
    whole, cut = small.read_bytes(), tmp_path / "cut.gguf"
    assert given_back(small, tmp_path / "folder") == whole
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
        assert found is None or found == damaged, place
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
        assert found is None or found == damaged, place


IMPORT = """
import os, signal, sys
from pathlib import Path
from edgeqaf import checkpoint
from edgeqaf.imported import import_base
class Killed(checkpoint.TensorWriter):
    def add_runs(self, name, dtype, runs):
        super().add_runs(name, dtype, runs)
        if name.startswith(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
checkpoint.TensorWriter = Killed
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
