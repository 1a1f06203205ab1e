"""GGUF block layouts are ggml's own: bit for bit, on every pattern of bytes, whatever grid they carry."""

import gguf
import numpy as np
import pytest

from edgeqaf import plugins
from edgeqaf.errors import GridError
from edgeqaf.grid import Grid, Zero
from edgeqaf.parts import join, split
from edgeqaf.qtensor import QTensor, check, decode
from edgeqaf.report import compare_bits
from exporters.gguf import blocks, exporter
from exporters.gguf.blocks import CARRIERS, LAYOUTS
from exporters.gguf.families.llama import family
from exporters.gguf.places import Dimensions

CARRIED = [name for name in plugins.names("grids") if exporter.refuses(plugins.find("grids", name)) is None]
# one block of each type, written by hand: scale 1.5 (0x3e00), offset -2.0 (0xc000)
GOLDEN = {
    "q4_0": bytes.fromhex("003e" + "01123344") + bytes(12),
    "q4_1": bytes.fromhex("003e" + "00c0" + "01123344") + bytes(12),
    "q8_0": bytes.fromhex("003e" + "0102807f") + bytes(28),
    "q3_0": bytes.fromhex("003e" + "45768788") + bytes.fromhex("44") * 12,
    "q2_0": bytes.fromhex("003e" + "67768789") + bytes.fromhex("66") * 12,
    "q3_1": bytes.fromhex("003e" + "00c0" + "01723344") + bytes(12),
    "q2_1": bytes.fromhex("003e" + "00c0" + "01320203") + bytes(12),
}
GOLDEN_CODES = {
    "q4_0": {0: 1, 1: 2, 2: 3, 3: 4, 17: 1, 18: 3, 19: 4},
    "q4_1": {0: 1, 1: 2, 2: 3, 3: 4, 17: 1, 18: 3, 19: 4},
    "q8_0": {0: 1, 1: 2, 2: -128, 3: 127},
    "q3_0": {0: 1, 1: 2, 2: 3, 3: 4, 17: 3, 18: 4, 19: 4},
    "q2_0": {0: 1, 2: 1, 3: 3, 17: 1, 18: 2, 19: 2},
    "q3_1": {0: 1, 1: 2, 2: 3, 3: 4, 17: 7, 18: 3, 19: 4},
    "q2_1": {0: 1, 1: 2, 2: 2, 3: 3, 17: 3},
}
# By hand, as in the exporter: ggml's own q2_0 has blocks of 64, and is not this project's.
KINDS = {
    **dict.fromkeys(("q4_0", "q3_0", "q2_0"), gguf.GGMLQuantizationType.Q4_0),
    **dict.fromkeys(("q4_1", "q3_1", "q2_1"), gguf.GGMLQuantizationType.Q4_1),
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q5_0": gguf.GGMLQuantizationType.Q5_0,
    "q5_1": gguf.GGMLQuantizationType.Q5_1,
    "q2_k": gguf.GGMLQuantizationType.Q2_K,
    "q3_k": gguf.GGMLQuantizationType.Q3_K,
    "q4_k": gguf.GGMLQuantizationType.Q4_K,
    "q5_k": gguf.GGMLQuantizationType.Q5_K,
    "q6_k": gguf.GGMLQuantizationType.Q6_K,
    "tq1_0": gguf.GGMLQuantizationType.TQ1_0,
    "tq2_0": gguf.GGMLQuantizationType.TQ2_0,
}
NATIVE = [name for name in KINDS if name == KINDS[name].name.lower()]
ONE_LEVEL = [name for name in CARRIED if plugins.find("grids", name).levels is None]
# What llama.cpp calls a file of one K-quant alone.
FILES = {"Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"}


def pack(q: QTensor) -> np.ndarray:
    return blocks.pack(q.grid, split(q))


def unpack(raw: bytes, grid: Grid, shape: tuple[int, int]) -> QTensor:
    return join(grid, blocks.unpack(raw, grid, shape))


def random_blocks(name: str, seed: int, rows: int = 64, blocks: int = 8) -> bytes:
    """Bytes as a file might hold them: any code, any finite float16 as scale and offset."""
    rng = np.random.default_rng(seed)
    layout = CARRIERS[name].layout.block
    raw = np.frombuffer(rng.bytes(rows * blocks * layout.itemsize), layout).copy()
    for field in {"d", "m", "dmin"} & set(layout.names or ()):
        raw[field] = np.where(np.isfinite(raw[field]), raw[field], np.float16(-0.0))
    if name.startswith("tq"):  # not every byte is made of trits
        trits = rng.integers(-1, 1, (rows, blocks * 256), endpoint=True).astype(np.float32)
        made = gguf.quantize(trits, KINDS[name]).reshape(-1).view(layout)
        for field in {"qs", "qh"} & set(layout.names or ()):
            raw[field] = made[field]
    return raw.tobytes()


def test_there_is_a_carrier_for_every_grid_that_is_not_refused():
    assert set(CARRIERS) <= set(plugins.names("grids"))
    assert set(CARRIED) == set(CARRIERS) == set(KINDS)
    assert sorted(layout.grid for layout in LAYOUTS.values()) == sorted(NATIVE)


@pytest.mark.parametrize("name", CARRIED)
def test_carrier_has_ggml_type_and_size(name):
    kind = KINDS[name]
    layout, grid = CARRIERS[name].layout, plugins.find("grids", name)
    assert LAYOUTS[layout.ggml_type] is layout
    assert (layout.name, layout.ggml_type, layout.file_type) == (
        kind.name, kind, gguf.LlamaFileType[f"MOSTLY_{FILES.get(kind.name, kind.name)}"]
    )  # fmt: skip
    assert (layout.weights, layout.block.itemsize) == gguf.GGML_QUANT_SIZES[kind] == (grid.unit, layout.block.itemsize)
    stored = exporter.stored_as(grid)
    assert (stored.type, stored.bits) == (kind.name, layout.block.itemsize * 8 / grid.unit)
    if name != "tq1_0":  # whose codes take 1.6 bits in files and 2 in memory
        assert (stored.bits == grid.bits_per_weight) == (layout.grid == name) == (name in NATIVE)


@pytest.mark.parametrize("name", ONE_LEVEL)
def test_every_code_means_in_ggml_what_it_means_on_the_grid(name):
    grid = plugins.find("grids", name)
    count = -(-(grid.hi - grid.lo + 1) // grid.block) * grid.block
    codes = np.resize(np.arange(grid.lo, grid.hi + 1), (1, count)).astype(np.int8)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    scales = halves[np.isfinite(halves)].astype(np.float32)[:: 1 if grid.bits < 8 else 17]
    each = (len(scales), codes.shape[1] // grid.block)
    scale = np.broadcast_to(scales[:, None], each)
    zero = np.random.default_rng(0).choice(scales, each) if grid.zero is Zero.OFFSET else None
    q = QTensor(grid, np.tile(codes, (len(scales), 1)), scale, zero)
    packed = pack(q)
    theirs = gguf.dequantize(packed.view(np.uint8).reshape(len(scales), -1), KINDS[name])
    assert not compare_bits(theirs, decode(q)).any()
    assert np.array_equal(unpack(packed.tobytes(), grid, q.shape).codes, q.codes)


@pytest.mark.parametrize("name", [name for name in CARRIED if name not in NATIVE])
def test_a_code_that_only_the_carrier_has_is_refused(name):
    grid, carrier = plugins.find("grids", name), CARRIERS[name]
    for nibble in range(16):
        ones = np.ones((1, 1), np.float32)
        zero = ones if grid.zero is Zero.OFFSET else None
        raw = bytearray(pack(QTensor(grid, np.full((1, 32), grid.hi, np.int8), ones, zero)).tobytes())
        raw[-3] = raw[-3] & 0x0F | nibble << 4
        q = unpack(bytes(raw), grid, (1, 32))
        if grid.lo <= nibble - carrier.shift <= grid.hi:
            assert check(q).codes[0, 29] == nibble - carrier.shift
            continue
        with pytest.raises(GridError, match=rf"codes span .*{nibble - carrier.shift}.*outside {name}'s"):
            check(q)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NATIVE)
def test_unpack_then_decode_equals_ggml_and_pack_is_the_inverse(name, seed):
    raw, grid = random_blocks(name, seed), plugins.find("grids", name)
    q = check(unpack(raw, grid, (64, 8 * grid.unit)))
    theirs = gguf.dequantize(np.frombuffer(raw, np.uint8).reshape(64, -1), KINDS[name])
    assert np.array_equal(theirs.view(np.uint32), decode(q).view(np.uint32))
    assert pack(q).tobytes() == raw


@pytest.mark.parametrize("name", ["tq1_0", "tq2_0"])
def test_bytes_that_no_trits_make_are_refused(name):
    grid, layout = plugins.find("grids", name), CARRIERS[name].layout
    found = {}
    for byte in range(256):
        raw = np.zeros(1, layout.block)
        raw["qs"] = byte
        q = unpack(raw.tobytes(), grid, (1, 256))
        found[byte] = pack(q)["qs"][0, 0, 0] == byte and q.codes.max() <= grid.hi
    assert sum(found.values()) == {"tq1_0": 243, "tq2_0": 81}[name]


@pytest.mark.parametrize("name", GOLDEN)
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
    d = Dimensions(layers=1, hidden=8, feed_forward=8, heads=3, kv_heads=2, head_dim=6, rotary=6, vocab=8)
    by_name = {p.stored: p for p in family.places(d, tied=True)}
    for name, heads in (("attn_q", 3), ("attn_k", 2)):
        place = by_name[f"blk.0.{name}.weight"]
        w = np.arange(place.shape[0])
        theirs = w.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)  # LlamaModel.permute
        assert np.array_equal(w[place.rows], theirs)
        assert list(place.rows[:6]) == [0, 3, 1, 4, 2, 5]
    assert by_name["blk.0.attn_v.weight"].rows is None
