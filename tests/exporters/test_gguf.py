"""A GGUF file gives back the very model it was made from, and a damaged one never passes for whole."""

import shutil
import struct
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest
from on_grid import on_grid
from tokenizers import Tokenizer, models, pre_tokenizers

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel, load, save
from edgeqaf.digest import merkle_root, tensor_digest
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid, Zero
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.report import compare_bits
from edgeqaf.source import FloatModel
from exporters.gguf import exporter
from exporters.gguf.artifact import SIZES, describe
from exporters.gguf.container import MAGIC, Type, Value, describe_tensors, seal, string, uint32
from exporters.gguf.families.llama import family
from exporters.gguf.reader import parse

CHECKOUT = Path(__file__).resolve().parents[2]
STORYTELLER = CHECKOUT / "examples" / "storyteller-6m"
SHARED = CHECKOUT.parent / "shared"
CARRIED = [name for name in plugins.names("grids") if exporter.refuses(plugins.find("grids", name)) is None]
CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 12, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 0,
}  # fmt: skip
ROOMY = {"hidden_size": 256, "intermediate_size": 256}  # whole super-blocks
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(target / "tokenizer.json"))
    return target


def tiny(folder: Path, grid: str | None = "q4_0", *, tied: bool = True, **changes: object) -> QModel:
    config = CONFIG | changes
    rng = np.random.default_rng(7)
    tensors = {}
    for place in family.places(family.dimensions(config), tied=tied):
        values = rng.standard_normal(place.shape).astype(np.float32)
        linear = "_proj" in place.logical and grid is not None
        tensors[place.logical] = on_grid(values, plugins.find("grids", grid)) if linear else values
    return QModel(config, tensors, folder)


def exported(model: QModel, path: Path) -> Path:
    exporter.export(model, path)
    return path


def root(path: Path) -> str:
    return merkle_root({name: tensor_digest(name, stored.tensor) for name, stored in exporter.read_back(path).items()})


@pytest.fixture(scope="module")
def good(folder, tmp_path_factory):
    """(bytes, root, where the data begins) of a tiny exported file."""
    model = tiny(folder)
    path = exported(model, tmp_path_factory.mktemp("good") / "model.gguf")
    return path.read_bytes(), merkle_root(model.digests()), parse(path, SIZES).start


# ---- round trip


@pytest.mark.parametrize("grid", [*CARRIED, None])
def test_a_real_model_comes_back_with_the_same_root(grid, tmp_path):
    source = FloatModel(STORYTELLER)
    chosen = plugins.find("grids", grid) if grid else None
    tensors = {
        name: on_grid(source[name], chosen)
        if chosen and chosen.fits(source.shape(name)[-1]) and source.is_linear(name)
        else source[name]
        for name in source
    }
    model = QModel(source.config, tensors, STORYTELLER)
    path = tmp_path / "model.gguf"
    size = exporter.plan(model)
    assert exported(model, path).stat().st_size == size
    assert root(path) == merkle_root(model.digests())
    saved = save(model, tmp_path / "folder", kind="base", parent=None, options={})
    assert exporter.plan(load(tmp_path / "folder")) == size
    assert root(path) == saved.root


@pytest.mark.parametrize("grid", CARRIED)
def test_an_independent_reader_sees_the_same_weights(grid, folder, tmp_path):
    model = tiny(folder, grid, tied=False, **ROOMY)
    path = exported(model, tmp_path / "model.gguf")
    theirs = {t.name: t for t in gguf.GGUFReader(path).tensors}
    stored = exporter.read_back(path)
    assert sorted(s.name for s in stored.values()) == sorted(theirs)
    for name, s in stored.items():
        tensor = theirs[s.name]
        logical = model.tensors[name]
        ours = decode(logical) if isinstance(logical, QTensor) else logical
        carrier = exporter.stored_as(plugins.find("grids", grid)).type
        assert (tensor.tensor_type.name == carrier) == isinstance(logical, QTensor)
        weights = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(ours.shape)
        assert not compare_bits(weights, s.in_file_order(ours)).any()


@pytest.mark.parametrize("grid", CARRIED)
def test_the_metadata_names_the_tensors_that_another_type_carries(grid, folder, tmp_path):
    path = exported(tiny(folder, grid, **ROOMY), tmp_path / "m.gguf")
    fields = {k: v for k, v in gguf.GGUFReader(path).fields.items() if k.startswith("edgeqaf.carried.")}
    named = {key: field.contents() for key, field in fields.items()}
    quantized = [s.name for s in exporter.read_back(path).values() if isinstance(s.tensor, QTensor)]
    carried = grid in ("q3_0", "q2_0", "q3_1", "q2_1")
    expected = {f"edgeqaf.carried.{grid}": quantized} if carried else {}
    assert named == expected


def test_tied_heads_are_not_written_and_untied_ones_are(folder, tmp_path):
    names = {
        tied: set(describe(exported(tiny(folder, tied=tied), tmp_path / f"{tied}.gguf")).tensors)
        for tied in (True, False)
    }
    assert names[False] - names[True] == {"output.weight"}


def test_two_exports_are_identical_wherever_the_model_lies(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    first = exported(tiny(folder), tmp_path / "1.gguf").read_bytes()
    assert exported(tiny(tmp_path / "elsewhere"), tmp_path / "2.gguf").read_bytes() == first


def test_reading_does_not_depend_on_the_order_of_access(good, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(good[0])
    stored = exporter.read_back(path)
    once = {name: tensor_digest(name, stored[name].tensor) for name in reversed(list(stored))}
    assert merkle_root(once) == good[1]
    path.write_bytes(good[0][:-1] + b"x")
    with pytest.raises(Refused, match="changed while it was read"):
        stored["model.norm.weight"]


# ---- metadata


def metadata(model: QModel, path: Path) -> dict[str, object]:
    fields = gguf.GGUFReader(exported(model, path)).fields
    return {key: field.contents() for key, field in fields.items()}


def test_metadata_holds_what_llama_cpp_needs(folder, tmp_path):
    found = metadata(tiny(folder, "q4_1", head_dim=32), tmp_path / "m.gguf")
    expected = {
        "general.architecture": "llama", "general.file_type": 3, "llama.block_count": 1, "llama.context_length": 64,
        "llama.embedding_length": 32, "llama.feed_forward_length": 64, "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1, "llama.attention.key_length": 32, "llama.attention.value_length": 32,
        "llama.rope.dimension_count": 32, "llama.rope.freq_base": 10000.0, "llama.vocab_size": 12,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    }  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 5.0, "rope_type": "linear", "factor": 2.0}},
    ],
)
def test_both_generations_of_rope_settings_are_read(rope, folder, tmp_path):
    found = metadata(tiny(folder, **rope), tmp_path / "m.gguf")
    assert (found["llama.rope.freq_base"], found["llama.rope.scaling.factor"]) == (5.0, 2.0)
    assert found["llama.rope.scaling.type"] == "linear"


def test_llama3_rope_factors_are_transformers_own(folder, tmp_path):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = CONFIG | {"head_dim": 64, "rope_parameters": LLAMA3}
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**config), "cpu")
    plain = LLAMA3["rope_theta"] ** -(np.arange(0, 64, 2) / 64)
    ours = plain / family.factors(config)["rope_freqs.weight"]
    assert (np.abs(ours / theirs.numpy() - 1) < 2**-21).all()  # theirs is computed in float32
    model = tiny(folder, head_dim=64, rope_parameters=LLAMA3)
    path = exported(model, tmp_path / "m.gguf")
    assert describe(path).tensors["rope_freqs.weight"] == ("F32", (32,))
    assert path.stat().st_size == exporter.plan(model)
    assert root(path) == merkle_root(model.digests())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "rope type 'dynamic'"),
        ({"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"max_position_embeddings": -1}, "max_position_embeddings is -1"),
        ({"eos_token_id": None}, "end token"),
        ({"vocab_size": 2}, "ids up to 2"),
        ({"num_hidden_layers": 2**31 - 1}, "2147483647 layers in 11 tensors"),
    ],
)
def test_a_config_that_llama_cpp_would_compute_differently_is_refused(changes, said, folder):
    with pytest.raises(Refused, match=said):
        exporter.plan(QModel(CONFIG | changes, tiny(folder, vocab_size=changes.get("vocab_size", 12)).tensors, folder))


def test_tensors_that_do_not_belong_are_refused_by_name(folder):
    model = tiny(folder)
    extra = {**model.tensors, "model.layers.0.self_attn.q_proj.bias": np.zeros(32, np.float32)}
    with pytest.raises(Refused, match=r"q_proj\.bias has no place"):
        exporter.plan(QModel(model.config, extra, folder))
    fewer = {name: tensor for name, tensor in model.tensors.items() if name != "model.norm.weight"}
    with pytest.raises(Refused, match=r"model\.norm\.weight is missing"):
        exporter.plan(QModel(model.config, fewer, folder))
    wrong = {**model.tensors, "model.norm.weight": np.zeros(31, np.float32)}
    with pytest.raises(Refused, match=r"model\.norm\.weight has shape \[31\]"):
        exporter.plan(QModel(model.config, wrong, folder))


def test_a_grid_that_ggml_lacks_is_refused_before_work(folder):
    model = tiny(folder)
    grid = Grid("uint4_b16", 4, 0, 15, 16, Zero.CODE, "ONNX")
    name = "model.layers.0.mlp.up_proj.weight"
    other = QTensor(grid, np.zeros((64, 32), np.int8), np.ones((64, 2), np.float32), np.zeros((64, 2), np.int8))
    with pytest.raises(Refused, match=r"up_proj\.weight is on grid uint4_b16"):
        exporter.plan(QModel(model.config, {**model.tensors, name: other}, folder))


def test_an_integer_zero_is_refused_with_the_reason():
    for name in ("uint4", "uint3", "uint2"):
        reason = exporter.refuses(plugins.find("grids", name))
        assert name in reason
        assert "-zero * scale would be rounded to float16" in reason
    scale, zero = np.float32(np.float16(0.0123)), 11
    assert np.float32(np.float16(-zero * scale)) != -zero * scale  # and so it would


@pytest.mark.parametrize("grid", ["float32", "q4_1"])
def test_a_manifest_that_misstates_a_tensor_is_noticed_while_writing(grid, folder, tmp_path):
    model = tiny(folder)
    stated = {n: {"grid": grid, "shape": list(t.shape)} for n, t in model.tensors.items() if "q_proj" in n} | {
        n: {"grid": own, "shape": list(shape)} for n, (own, shape) in model.outline().items() if "q_proj" not in n
    }
    with pytest.raises(Refused, match=f"q_proj.weight is not {grid}, as its model's manifest says"):
        exporter.export(QModel(model.config, model.tensors, folder, {"tensors": stated}), tmp_path / "m.gguf")


# ---- damage


def refused(raw: bytes, path: Path) -> str:
    path.write_bytes(raw)
    with pytest.raises(Refused) as caught:
        exporter.read_back(path)
    return caught.value.cause


def test_truncation_is_refused_wherever_it_happens(good, tmp_path):
    raw, _, start = good
    ends = [start + i.offset + i.size for i in parse_good(good, tmp_path).tensors.values()]
    cuts = {*range(0, start, 2), *(e + d for e in ends for d in (-1, 0, 1)), *range(start, len(raw), 97), len(raw) - 1}
    for cut in sorted(cuts - {len(raw)} & set(range(len(raw)))):
        refused(raw[:cut], tmp_path / "cut.gguf")


def parse_good(good, tmp_path):
    (tmp_path / "good.gguf").write_bytes(good[0])
    return parse(tmp_path / "good.gguf", SIZES)


def test_a_flipped_bit_in_any_header_byte_is_refused(good, tmp_path):
    raw, _, start = good
    for position in range(start):
        flipped = bytearray(raw)
        flipped[position] ^= 1 << (position % 8)
        refused(bytes(flipped), tmp_path / "flip.gguf")


def test_a_flipped_bit_in_the_data_is_refused_or_changes_the_root(good, tmp_path):
    raw, true_root, start = good
    rng = np.random.default_rng(1)
    path, outcomes = tmp_path / "flip.gguf", Counter[str]()
    for position in rng.integers(start, len(raw), 200):
        flipped = bytearray(raw)
        flipped[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            outcomes["other root" if root(path) != true_root else "unnoticed"] += 1
        except Refused:
            outcomes["refused"] += 1
    assert outcomes["other root"]
    assert not outcomes["unnoticed"]


def test_extreme_numbers_anywhere_in_the_header_are_refused_quickly(good, tmp_path):
    raw, _, start = good
    for position in range(4, start - 8, 5):
        for number in (0, 2**31, 2**63, 2**64 - 1):
            splat = raw[:position] + struct.pack("<Q", number) + raw[position + 8 :]
            if splat != raw:
                refused(splat, tmp_path / "splat.gguf")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: b"", "magic needs 4 bytes"),
        (lambda raw: b"GGML" + raw[4:], "first four bytes are not GGUF"),
        (lambda raw: MAGIC + struct.pack("<I", 2) + raw[8:], "version 2, this reads 3"),
        (lambda raw: MAGIC + struct.pack(">I", 3) + raw[8:], "big endian"),
        (lambda raw: MAGIC + struct.pack("<IQ", 3, 2**64 - 1) + raw[16:], f"tensor count is {2**64 - 1}"),
        (lambda raw: raw + bytes(32), "bytes long, but"),
        (lambda raw: raw + raw, "bytes long, but"),
        (lambda raw: raw.replace(b"add_bos_token", b"add_eos_token"), "add_eos_token appears twice"),
        (lambda raw: raw.replace(b"attn_k.weight", b"attn_q.weight"), r"blk\.0\.attn_q\.weight appears twice"),
        (lambda raw: raw.replace(b"blk.0.attn_v", b"../0.attn_v"), "is not a name"),
        (lambda raw: raw.replace(b"blk.0.attn_v", b"blk.0\0attn_v"), "is not a name"),
        (
            lambda raw: raw.replace(b"edgeqaf.header", b"edgeqaf.hEader"),
            "value is no edgeqaf.header_sha256",
        ),
        (lambda raw: raw.replace(b"llama.rope.freq_base", b"llama.rope.freq_bare"), "edgeqaf.header_sha256 is"),
    ],
)
def test_a_malformed_header_is_refused_with_its_reason(change, said, good, tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(change(good[0]))
    with pytest.raises(Refused, match=said):
        exporter.read_back(path)


def resealed(good, tmp_path, change) -> bytes:
    """The good file with other tensor descriptions or metadata, sealed again as an attacker could."""
    contents = parse_good(good, tmp_path)
    entries = {k: v for k, v in contents.metadata.items() if k != "edgeqaf.header_sha256"}
    infos = describe_tensors((i.name, i.shape, i.type, i.size) for i in contents.tensors.values())
    entries, infos = change(entries, infos)
    return seal(entries, infos) + good[0][contents.start :]


def moved(infos, index, **parts):
    info = infos[index]
    values = {"name": info.name, "shape": info.shape, "type": info.type, "offset": info.offset, "size": info.size}
    infos[index] = type(info)(**(values | parts))
    return infos


def carried(grid, *names):
    """The change that claims the tensors ``names`` for a grid that travels in another's block type."""
    value = Value(Type.ARRAY, [name.encode() for name in names], Type.STRING)
    return lambda m, t: ({**m, f"edgeqaf.carried.{grid}": value}, t)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m, t: (m, moved(t, 2, offset=t[1].offset)), "overlap or gap"),
        (lambda m, t: (m, moved(t, 2, offset=t[2].offset + 32)), "overlap or gap"),
        (lambda m, t: (m, moved(t, 2, offset=t[2].offset + 1)), "overlap or gap"),
        (lambda m, t: (m, moved(t, 3, offset=2**64 - 32)), "overlap or gap"),
        (lambda m, t: (m, moved(t, 0, shape=(2**32, 2**32))), "overlap or gap"),
        (lambda m, t: (m, moved(t, -1, shape=(2**20, 64))), "bytes long, but"),
        (lambda m, t: (m, moved(t, 0, shape=(0, 32))), r"shape \[0, 32\] does not fit"),
        (lambda m, t: (m, moved(t, 3, shape=(32, 31))), r"shape \[32, 31\] does not fit"),
        (lambda m, t: (m, moved(t, 3, type=99)), "ggml type 99"),
        (lambda m, t: (m, moved(t, 0, shape=(1, 1, 1, 12, 32))), "5 dimensions"),
        (lambda m, t: (m, moved(t, 0, name="x" * 64)), "length of tensor name is 64"),
        (lambda m, t: (m, moved(t, 0, shape=(6, 64))), r"shape \[6, 64\], the metadata implies \[12, 32\]"),
        (lambda m, t: (m, moved(t, 1, name="output.weight")), "is missing from|is not part of"),
        (lambda m, t: ({**m, "general.alignment": uint32(3)}, t), "general.alignment is 3"),
        (lambda m, t: ({**m, "general.alignment": uint32(2**31)}, t), "general.alignment is 2147483648"),
        (lambda m, t: ({**m, "general.alignment": string("32")}, t), "general.alignment is b'32'"),
        (lambda m, t: ({**m, "general.architecture": string("gpt2")}, t), "architecture 'gpt2'"),
        (lambda m, t: ({**m, "llama.block_count": uint32(2**31)}, t), "2147483648 layers"),
        (lambda m, t: ({**m, "llama.block_count": string("1")}, t), "llama.block_count is missing or not"),
        (lambda m, t: ({**m, "llama.attention.head_count": uint32(3)}, t), "has shape"),
        (carried("q3_0", "blk.0.attn_q.weight"), r"attn_q\.weight: codes span \[-\d, \d+\], outside q3_0's \[0, 7\]"),
        (carried("q2_0", "blk.0.attn_q.weight"), r"attn_q\.weight: codes span \[-\d, \d+\], outside q2_0's \[0, 3\]"),
        (carried("q3_1", "blk.0.attn_q.weight"), r"q3_1 names blk\.0\.attn_q\.weight, which is not one tensor on q4_1"),
        (carried("q3_0", "token_embd.weight"), r"names token_embd\.weight, which is not one tensor on q4_0"),
        (carried("q3_0", "blk.0.attn_k.weight", "blk.0.attn_k.weight"), "which is not one tensor on q4_0"),
        (carried("q3_0", "blk.9.attn_q.weight"), r"names blk\.9\.attn_q\.weight, which is not"),
        (carried("q4_0", "blk.0.attn_q.weight"), r"names blk\.0\.attn_q\.weight, which is not"),
        (carried("uint3", "blk.0.attn_q.weight"), r"uint3 is not the names of tensors on a grid that is carried"),
        (lambda m, t: ({**m, "edgeqaf.carried.q3_0": string("blk.0.attn_q.weight")}, t), "is not the names of tensors"),
    ],
)
def test_a_sealed_but_inconsistent_file_is_refused_with_its_reason(change, said, good, tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(resealed(good, tmp_path, change))
    with pytest.raises(Refused, match=said):
        exporter.read_back(path)


@pytest.mark.parametrize(
    ("name", "bits", "said"),
    [
        ("blk.0.attn_q.weight", b"\x00\x7e", r"attn_q\.weight\.scale\[0, 0\] = np\.float32\(nan\)"),
        ("blk.0.ffn_up.weight", b"\x00\xfc", r"ffn_up\.weight\.scale\[0, 0\] = np\.float32\(-inf\)"),
        ("output_norm.weight", struct.pack("<f", float("nan")), r"output_norm\.weight\[0\] is nan"),
    ],
)
def test_a_scale_or_weight_that_is_not_finite_is_refused_with_its_place(name, bits, said, good, tmp_path):
    contents = parse_good(good, tmp_path)
    at = contents.start + contents.tensors[name].offset
    path = tmp_path / "nan.gguf"
    path.write_bytes(good[0][:at] + bits + good[0][at + len(bits) :])
    with pytest.raises(Refused, match=said):
        exporter.read_back(path)


def test_arrays_of_arrays_and_unknown_types_are_refused(tmp_path):
    head = MAGIC + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    assert "array of arrays" in refused(head + struct.pack("<IIQ", 9, 9, 1) + bytes(64), tmp_path / "a.gguf")
    assert "unknown metadata type 13" in refused(head + struct.pack("<I", 13) + bytes(64), tmp_path / "b.gguf")
    assert "holds 2 as a truth value" in refused(head + struct.pack("<IB", 7, 2) + bytes(64), tmp_path / "c.gguf")


def test_what_is_not_a_regular_file_is_refused(tmp_path):
    with pytest.raises(Refused, match="No such file"):
        exporter.read_back(tmp_path / "absent.gguf")
    with pytest.raises(Refused, match="not a regular file"):
        exporter.read_back(tmp_path)


# ---- foreign files


def test_a_foreign_file_is_described_and_read():
    path = SHARED / "models" / "stories260K" / "stories260K.gguf"
    if not path.is_file():
        pytest.skip("stories260K.gguf is not beside the checkout")
    found = describe(path)
    assert (found.architecture, len(found.tensors)) == ("llama", 48)
    assert found.tensors["blk.0.ffn_down.weight"] == ("F32", (64, 172))
    assert exporter.read_back(path)["model.layers.0.mlp.down_proj.weight"].tensor.shape == (64, 172)
