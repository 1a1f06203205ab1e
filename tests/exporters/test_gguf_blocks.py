"""GGUF block layouts are ggml's own: bit for bit, on every pattern of bytes."""

import gguf
import numpy as np
import pytest

from edgeqaf import plugins
from edgeqaf.grid import Grid, Zero
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.report import compare_bits
from exporters.gguf import exporter
from exporters.gguf.blocks import LAYOUTS, pack, unpack
from exporters.gguf.names import Dimensions, places

CARRIED = [name for name in plugins.names("grids") if exporter.refuses(plugins.find("grids", name)) is None]
# one block of each type, written by hand: scale 1.5 (0x3e00), offset -2.0 (0xc000)
GOLDEN = {
    "q4_0": bytes.fromhex("003e" + "01123344") + bytes(12),
    "q4_1": bytes.fromhex("003e" + "00c0" + "01123344") + bytes(12),
    "q8_0": bytes.fromhex("003e" + "0102807f") + bytes(28),
}
GOLDEN_CODES = {
    "q4_0": {0: 1, 1: 2, 2: 3, 3: 4, 17: 1, 18: 3, 19: 4},
    "q4_1": {0: 1, 1: 2, 2: 3, 3: 4, 17: 1, 18: 3, 19: 4},
    "q8_0": {0: 1, 1: 2, 2: -128, 3: 127},
}


def random_blocks(name: str, seed: int, rows: int = 64, blocks: int = 8) -> bytes:
    """Bytes as a file might hold them: any code, any finite float16 as scale and offset."""
    rng = np.random.default_rng(seed)
    layout = LAYOUTS[name].block
    raw = np.frombuffer(rng.bytes(rows * blocks * layout.itemsize), layout).copy()
    for field in {"d", "m"} & set(layout.names or ()):
        raw[field] = np.where(np.isfinite(raw[field]), raw[field], np.float16(-0.0))
    return raw.tobytes()


def test_there_is_a_layout_for_every_grid_that_ggml_has():
    assert set(LAYOUTS) <= set(plugins.names("grids"))
    assert set(CARRIED) == set(LAYOUTS)


@pytest.mark.parametrize("name", CARRIED)
def test_layout_has_ggml_type_and_size(name):
    kind = gguf.GGMLQuantizationType[name.upper()]
    layout, grid = LAYOUTS[name], plugins.find("grids", name)
    assert (layout.ggml_type, layout.file_type) == (kind, gguf.LlamaFileType[f"MOSTLY_{name.upper()}"])
    assert (layout.weights, layout.block.itemsize) == gguf.GGML_QUANT_SIZES[kind] == (grid.block, layout.block.itemsize)
    assert grid.bits_per_weight == layout.block.itemsize * 8 / grid.block


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CARRIED)
def test_unpack_then_decode_equals_ggml_and_pack_is_the_inverse(name, seed):
    raw, grid = random_blocks(name, seed), plugins.find("grids", name)
    q = unpack(raw, grid, (64, 8 * grid.block))
    theirs = gguf.dequantize(np.frombuffer(raw, np.uint8).reshape(64, -1), gguf.GGMLQuantizationType[name.upper()])
    assert not compare_bits(theirs, decode(q)).any()
    assert pack(q).tobytes() == raw


@pytest.mark.parametrize("name", CARRIED)
def test_golden_block(name):
    grid = plugins.find("grids", name)
    codes = np.zeros((1, 32), np.int8)
    for column, code in GOLDEN_CODES[name].items():
        codes[0, column] = code
    zero = np.full((1, 1), -2.0, np.float32) if grid.zero is Zero.OFFSET else None
    q = QTensor(grid, codes, np.full((1, 1), 1.5, np.float32), zero)
    assert pack(q).tobytes() == GOLDEN[name]
    assert np.array_equal(unpack(GOLDEN[name], grid, (1, 32)).codes, codes)


def test_a_grid_without_a_block_type_is_refused_by_name():
    grid = Grid("uint4_b64", 4, 0, 15, 64, Zero.CODE, "ONNX")
    assert "uint4_b64" in exporter.refuses(grid)


def test_q_and_k_rows_are_interleaved_as_llama_cpp_wants_them():
    d = Dimensions(layers=1, hidden=8, feed_forward=8, heads=3, kv_heads=2, head_dim=6, vocab=8)
    by_name = {p.stored: p for p in places(d, tied=True)}
    for name, heads in (("attn_q", 3), ("attn_k", 2)):
        place = by_name[f"blk.0.{name}.weight"]
        w = np.arange(place.shape[0])
        theirs = w.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)  # LlamaModel.permute
        assert np.array_equal(w[place.rows], theirs)
        assert list(place.rows[:6]) == [0, 3, 1, 4, 2, 5]
    assert by_name["blk.0.attn_v.weight"].rows is None
