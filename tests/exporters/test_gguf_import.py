"""A GGUF file of any maker becomes a base, and comes back byte for byte; tuned, only bytes of codes differ."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import GGML, VOCAB, WORDS, write
from tokenizers import Tokenizer as Backend

from edgeqaf import checkpoint, plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.companions import FRAME
from edgeqaf.errors import Refused
from edgeqaf.imported import import_base
from edgeqaf.modeling import build
from edgeqaf.nn import qlinears
from edgeqaf.protocols import Artifact, RuntimeOptions
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.tokenizer import Tokenizer
from exporters.gguf import exporter
from exporters.gguf.frame import Frame
from exporters.gguf.layouts import LAYOUTS

MADE_BY_LLAMA_CPP = (
    "storyteller-6m-gguf/storyteller-Q4_0.gguf",
    "storyteller-6m-gguf/storyteller-Q4_K_M.gguf",
    "stories260K/stories260K.gguf",
)
TEXT = "Once upon a time,  there were 1234 élèves — 日本語 🙂\n\tdef f(x): return x**2  # don't"


def exported(base: Path, path: Path) -> bytes:
    model = checkpoint.load(base)
    exporter.export(model, path)
    assert exporter.plan(model) == path.stat().st_size
    return path.read_bytes()


MIXED = [GGML.Q4_K, GGML.Q6_K, GGML.Q5_0, GGML.F16, GGML.BF16, GGML.Q8_0, GGML.Q3_K]
KINDS = {GGML(kind).name: [GGML(kind)] for kind in LAYOUTS} | {"mixed": MIXED, "F16": [GGML.F16], "F32": [GGML.F32]}


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_import_and_export_give_the_file_back_byte_for_byte(kinds, tmp_path):
    path = write(tmp_path / "theirs.gguf", kinds)
    base = import_base(path, tmp_path / "base")
    assert exported(tmp_path / "base", tmp_path / "ours.gguf") == path.read_bytes()
    theirs = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for name, stored in exporter.read_back(path).items():
        tensor = base.tensors[name]
        ours = decode(tensor) if isinstance(tensor, QTensor) else tensor
        expected = gguf.dequantize(theirs[stored.name].data, theirs[stored.name].tensor_type).astype(np.float32)
        in_file = stored.in_file_order(ours)
        assert np.array_equal(expected.reshape(ours.shape).view(np.uint32), in_file.view(np.uint32))


@pytest.mark.parametrize(
    "changes", [{"tied": True}, {"alignment": 64}, {"tied": True, "embedding": GGML.Q6_K}], ids=str
)
def test_so_it_is_with_tied_heads_other_alignments_and_quantized_embeddings(changes, tmp_path):
    path = write(tmp_path / "theirs.gguf", [GGML.Q4_K], **changes)
    base = import_base(path, tmp_path / "base")
    assert exported(tmp_path / "base", tmp_path / "ours.gguf") == path.read_bytes()
    assert base.config["tie_word_embeddings"] == changes.get("tied", False)


def test_so_it_is_with_a_file_that_ends_with_its_last_tensor(tmp_path):
    path = write(tmp_path / "theirs.gguf", [GGML.Q8_0], alignment=2**14)
    (contents,) = exporter.read_back(path).files.parts
    last = list(contents.tensors.values())[-1]
    assert contents.padding(last) > 0
    path.write_bytes(path.read_bytes()[: -contents.padding(last)])
    import_base(path, tmp_path / "base")
    assert exported(tmp_path / "base", tmp_path / "ours.gguf") == path.read_bytes()


@pytest.mark.parametrize("name", MADE_BY_LLAMA_CPP)
def test_files_that_llama_cpps_own_tools_made_come_back_byte_for_byte(name, shared, tmp_path):
    path = shared / "models" / name
    import_base(path, tmp_path / "base")
    assert exported(tmp_path / "base", tmp_path / "ours.gguf") == path.read_bytes()


def test_after_tuning_only_bytes_of_codes_differ(tmp_path):
    path = write(tmp_path / "theirs.gguf", MIXED)
    base = import_base(path, tmp_path / "base")
    rng, tensors = np.random.default_rng(0), {}
    for name, tensor in base.tensors.items():
        if isinstance(tensor, QTensor):
            moved = rng.random(tensor.shape) < 0.1
            codes = np.where(moved, rng.integers(tensor.grid.lo, tensor.grid.hi, tensor.shape), tensor.codes)
            tensor = tensor.replace(codes=codes.astype(np.int8))
        tensors[name] = tensor
    exporter.export(QModel(base.config, tensors, base.folder), tmp_path / "tuned.gguf")
    before, after = (np.frombuffer(p.read_bytes(), np.uint8) for p in (path, tmp_path / "tuned.gguf"))
    differing = before != after
    (contents,) = exporter.read_back(path).files.parts
    coded = np.zeros(len(before), bool)
    for info in contents.tensors.values():
        if info.type in LAYOUTS:
            block = LAYOUTS[info.type].block
            fields = np.zeros((info.size // block.itemsize), block)
            for field in set(block.names or ()) - {"d", "dmin", "m", "scales"}:
                fields[field] = 255
            at = contents.start + info.offset
            coded[at : at + info.size] = fields.view(np.uint8).reshape(-1) == 255
    assert differing.any()
    assert not (differing & ~coded).any()


def test_the_model_computes_in_transformers_what_the_integers_say(tmp_path):
    import torch

    for changes in ({}, {"tied": True, "embedding": GGML.Q6_K}, {"embedding": GGML.Q8_0}):
        path = write(tmp_path / f"{len(changes)}.gguf", [GGML.Q4_K], **changes)
        base = import_base(path, tmp_path / f"base{len(changes)}")
        floats = {n: decode(t) if isinstance(t, QTensor) else t for n, t in base.tensors.items()}
        ids = torch.arange(20)[None]
        with torch.no_grad():
            ours, plain = (build(base.config, tensors)(input_ids=ids).logits for tensors in (base.tensors, floats))
        assert torch.equal(ours, plain)
        names = set(qlinears(build(base.config, base.tensors)))
        assert names == {n for n in base.tensors if "_proj" in n}  # neither end is tuned


@pytest.mark.parametrize("name", ["storyteller-6m-gguf/storyteller-Q4_0.gguf"])
def test_the_tokenizer_made_from_metadata_is_the_one_the_file_was_made_with(name, shared, tmp_path):
    import_base(shared / "models" / name, tmp_path / "base")
    ours, theirs = Tokenizer(tmp_path / "base"), Tokenizer(shared / "models" / "storyteller-6m")
    for text in (TEXT, "<|user|>hi<|assistant|>", "", " "):
        assert ours.encode(text, prompt=True) == theirs.encode(text, prompt=True)
        assert ours.decode(ours.encode(text, prompt=False)) == theirs.decode(theirs.encode(text, prompt=False))
    assert ours.eos == theirs.eos


@pytest.mark.parametrize("name", MADE_BY_LLAMA_CPP[1:])
def test_the_tokenizer_made_from_metadata_encodes_as_llama_cpp_does(name, shared, tmp_path):
    path = shared / "models" / name
    base = import_base(path, tmp_path / "base")
    runtime = plugins.find("runtimes", "llama_cpp")
    artifact = Artifact("gguf", path, exporter.read_back(path), base.folder)
    ours = Tokenizer(base.folder)
    with runtime.open(artifact, runtime.configurations[0], RuntimeOptions()) as session:
        for text in (TEXT, "Once upon a time", "Lily and Ben  went to the park.", "x\n\n\ny", "1000000"):
            assert ours.encode(text, prompt=True) == session.encode(text)


def test_companions_say_what_the_metadata_says(tmp_path):
    import_base(write(tmp_path / "m.gguf", [GGML.Q4_K]), tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert (config["model_type"], config["eos_token_id"], config["rms_norm_eps"]) == ("llama", VOCAB - 1, 1e-5)
    assert json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"
    backend = Backend.from_file(str(tmp_path / "base" / "tokenizer.json"))
    assert backend.encode("hello").ids == [256 + WORDS.index("hello")]
    assert (tmp_path / "base" / FRAME).is_file()


# ---- refused


def test_an_unknown_way_to_cut_words_is_refused_and_a_folder_is_the_way_out(tmp_path, shared):
    path = write(tmp_path / "m.gguf", [GGML.Q4_0], pre="klingon")
    with pytest.raises(Refused, match="'klingon' cuts text into words") as refused:
        import_base(path, tmp_path / "base")
    assert "--tokenizer FOLDER" in refused.value.remedy
    assert not (tmp_path / "base").exists()
    import_base(path, tmp_path / "base", shared / "models" / "storyteller-6m")
    assert exported(tmp_path / "base", tmp_path / "ours.gguf") == path.read_bytes()
    theirs = (shared / "models" / "storyteller-6m" / "tokenizer.json").read_bytes()
    assert (tmp_path / "base" / "tokenizer.json").read_bytes() == theirs


def test_a_type_without_a_grid_is_refused_by_tensor_and_name(tmp_path):
    path = write(tmp_path / "m.gguf", [GGML.Q4_0])
    raw = bytearray(path.read_bytes())
    at = raw.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight") + 4 + 16
    assert int.from_bytes(raw[at : at + 4], "little") == GGML.Q4_0
    raw[at : at + 4] = int(GGML.IQ4_NL).to_bytes(4, "little")  # of the same size
    path.write_bytes(raw)
    with pytest.raises(Refused, match=r"blk\.0\.attn_q\.weight is IQ4_NL, for which there is no grid"):
        import_base(path, tmp_path / "base")


def test_a_model_that_is_no_longer_on_the_files_grids_is_refused(tmp_path):
    base = import_base(write(tmp_path / "m.gguf", [GGML.Q4_0]), tmp_path / "base")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = dict(base.tensors) | {name: decode(base.tensors[name])}
    with pytest.raises(Refused, match=rf"{name} is float32, in the GGUF file it came from q4_0"):
        exporter.plan(QModel(base.config, tensors, base.folder))


def test_a_damaged_frame_is_refused(tmp_path):
    base = import_base(write(tmp_path / "m.gguf", [GGML.Q4_0]), tmp_path / "base")
    (base.folder / FRAME).write_bytes((base.folder / FRAME).read_bytes()[:-9])
    with pytest.raises(Refused, match=FRAME):
        Frame(base)
