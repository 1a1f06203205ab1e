"""Quantizers on a whole model: what they share, and GPTQ's way through the layers."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeqaf import plugins, scoring
from edgeqaf.calibration import Calibration, sequences
from edgeqaf.errors import Refused, UsageError
from edgeqaf.halfway import Halfway
from edgeqaf.modeling import build
from edgeqaf.qtensor import decode
from edgeqaf.quantize import quantize
from edgeqaf.quantizer import EachMatrix, OntoGrid, Quantizer, require_known
from edgeqaf.source import FloatModel

WORDS = ("the old fox went down to the river and asked the frog why rain is wet but fire is not so",)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """About 2,700 tokens of words in a random order."""
    words = np.random.default_rng(8).choice(WORDS[0].split(), 2500)
    path = tmp_path_factory.mktemp("text") / "calib.txt"
    path.write_text(" ".join(words), "utf-8")
    return path


def gptq(model: Path, out: Path, text: Path, **options):
    return quantize(model, out, options.pop("grid", "q3_0"), "gptq", calib=text, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", plugins.names("quantizers"))
def test_a_quantizer_knows_its_name_and_its_options(name):
    quantizer = plugins.find("quantizers", name)
    assert isinstance(quantizer, Quantizer)
    assert quantizer.name == name if isinstance(quantizer, OntoGrid) else name == "llama_cpp"
    with pytest.raises(UsageError, match=f"--colour-of is no option of the quantizer {name}") as refused:
        require_known(name, dict.fromkeys(quantizer.takes, 1) | {"colour_of": 1})
    assert all(option.replace("_", "-") in refused.value.remedy for option in quantizer.takes)


def test_every_option_of_a_quantizer_is_a_flag_of_the_command():
    flags = {
        "type" if flag == "kind" else flag
        for flag in inspect.signature(plugins.find("commands", "quantize")).parameters
    }
    for name in plugins.names("quantizers"):
        assert plugins.find("quantizers", name).takes <= flags


@pytest.mark.parametrize("name", ["rtn", "absmax"])
def test_a_rule_reads_one_matrix_at_a_time(name, tiny_float_model, tmp_path, monkeypatch):
    base = quantize(tiny_float_model, tmp_path / "base", "q4_1", name)
    rule, source = plugins.find("quantizers", name), FloatModel(tiny_float_model)
    assert isinstance(rule, EachMatrix)
    for tensor_name, q in base.quantized():
        alone = rule(source[tensor_name], q.grid)
        assert np.array_equal(q.codes, alone.codes)
        assert np.array_equal(q.zero, alone.zero)
    assert base.manifest["options"] == {"grid": "q4_1", "quantizer": name}


def test_gptq_gives_the_same_bytes_twice_and_says_what_it_read(tiny_float_model, text, tmp_path):
    first, second = (gptq(tiny_float_model, tmp_path / name, text, calib_tokens=1024) for name in ("a", "b"))
    assert files(first.folder) == files(second.folder)
    options = first.manifest["options"]
    assert options.items() >= {"grid": "q3_0", "quantizer": "gptq", "calib_tokens": 1024, "damping": 0.01}.items()
    assert len(options["calib"]) == 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert gptq(tiny_float_model, tmp_path / "c", text, calib_tokens=2048).root != first.root


@pytest.mark.parametrize("grid", ["q4_0", "q3_0", "q2_1", "uint2"])
def test_gptq_keeps_the_logits_nearer_than_rounding_does(grid, tiny_float_model, text, tmp_path):
    ids = sequences(text, tiny_float_model, 2048)
    source = FloatModel(tiny_float_model)
    bases = [gptq(tiny_float_model, tmp_path / "gptq", text, grid=grid),
             quantize(tiny_float_model, tmp_path / "rtn", grid, "rtn")]  # fmt: skip
    with torch.no_grad():
        wanted, *found = (build(source.config, m)(ids).logits for m in (dict(source), *(b.tensors for b in bases)))
    ours, theirs = (float(((logits - wanted) ** 2).mean()) for logits in found)
    assert ours < 0.8 * theirs


def test_a_layer_sees_the_quantized_layers_before_it(tiny_float_model, text, tmp_path, monkeypatch):
    given = []
    through = Calibration.through
    monkeypatch.setattr(Calibration, "through", lambda self, i, w: given.append(w) or through(self, i, w))
    base = gptq(tiny_float_model, tmp_path / "base", text, calib_tokens=512)
    for i, weights in enumerate(given):
        assert set(weights) == {n for n, _ in base.quantized() if n.startswith(f"model.layers.{i}.")}
        for name, values in weights.items():
            assert np.array_equal(values, decode(base.tensors[name]))


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(tiny_float_model, text, tmp_path, monkeypatch):
    whole = gptq(tiny_float_model, tmp_path / "whole", text)
    finish, finished = Halfway.finish, []

    def once(self, index, tensors):
        if finished:
            raise KeyboardInterrupt
        finish(self, index, tensors)
        finished.append(index)

    monkeypatch.setattr(Halfway, "finish", once)
    with pytest.raises(KeyboardInterrupt):
        gptq(tiny_float_model, tmp_path / "cut", text)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".cut.halfway", "whole"]
    monkeypatch.setattr(Halfway, "finish", lambda self, i, t: (finished.append(i), finish(self, i, t)))
    cut = gptq(tiny_float_model, tmp_path / "cut", text)
    assert finished == [0, 1]
    assert files(cut.folder) == files(whole.folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


@pytest.mark.parametrize(
    "changed", [{"damping": 0.02}, {"grid": "q2_0"}, {"calib_tokens": 512}, {"ends": "q4_0"}], ids=str
)
def test_what_another_run_left_halfway_is_not_taken(changed, tiny_float_model, text, tmp_path, monkeypatch):
    finish, finished = Halfway.finish, []

    def then_stop(self, index, tensors):
        finish(self, index, tensors)
        raise KeyboardInterrupt

    monkeypatch.setattr(Halfway, "finish", then_stop)
    with pytest.raises(KeyboardInterrupt):
        gptq(tiny_float_model, tmp_path / "base", text)
    monkeypatch.setattr(Halfway, "finish", lambda self, i, t: (finished.append(i), finish(self, i, t)))
    base = gptq(tiny_float_model, tmp_path / "base", text, **changed)
    assert finished == [0, 1]
    assert base.root == gptq(tiny_float_model, tmp_path / "again", text, **changed).root


def test_linears_that_share_an_input_share_a_hessian(tiny_float_model, text):
    source = FloatModel(tiny_float_model)
    calibration = Calibration(source.config, source, sequences(text, tiny_float_model, 512))
    names = [name for name in source if source.is_linear(name) and ".layers.0." in name]
    groups = [[n.split(".")[-2][0] for n in sharers] for sharers, _ in calibration.hessians(0, names)]
    assert groups == [["q", "k", "v"], ["o"], ["g", "u"], ["d"]]


def test_a_text_of_less_than_one_sequence_is_refused_by_its_tokens(tiny_float_model, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("one fox", "utf-8")
    with pytest.raises(Refused, match=r"calibration needs 512 tokens at least: .*short\.txt has \d, and 32,768"):
        gptq(tiny_float_model, tmp_path / "base", short)
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_a_tokenizer_of_another_model_is_refused(tiny_float_model, text, tmp_path, monkeypatch):
    monkeypatch.setattr(FloatModel, "shape", lambda self, name: (300, 64))
    with pytest.raises(Refused, match=r"token \d+ is outside the vocabulary of 300"):
        sequences(text, tiny_float_model, 512)


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan"), float("inf")])
def test_a_damping_that_is_no_positive_number_is_refused(damping, tiny_float_model, text, tmp_path):
    with pytest.raises(UsageError, match=f"--damping {damping} is no positive number"):
        gptq(tiny_float_model, tmp_path / "base", text, damping=damping)


def test_a_lossy_merge_is_not_quantized_again_by_what_needs_a_text(tiny_float_model, text, tmp_path):
    base = gptq(tiny_float_model, tmp_path / "base", text, calib_tokens=512)
    with pytest.raises(Refused, match="base was quantized by gptq, which needs more of a model than a matrix"):
        scoring._requantized("lora", base, None, None, "cpu")
