"""The exact program of every family: equal bits in PyTorch and ONNX Runtime, in one go, in steps, in padded batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from family_models import CASES, VOCABULARY
from test_family_onnx import LENGTH, LLAMA, MORE, SHORT, Decoder, Exported, apart, config_of, quantized

from edgeqaf.digest import Floats, merkle_root
from edgeqaf.errors import Refused
from edgeqaf.exportoptions import ExportOptions, OnnxOptions
from edgeqaf.protocols import Artifact
from exporters.onnx import exporter
from exporters.onnx.exact.lower import KEPT
from exporters.onnx.trace import trace
from runtime_tests.interpreter import OPERATIONS, Program

DYNAMIC = "llama dynamic"  # its frequencies are powers that depend on the length: refused
QUICK = ("qwen3 yarn", "gemma 3 4B", "phi 3.5 mini, long")
EXACT = ExportOptions(onnx=OnnxOptions("exact", activations="int16"))
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def session(path: Path, level: str = "ORT_ENABLE_ALL", threads: int = 1) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return onnxruntime.InferenceSession(str(path / "model.onnx"), options)


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in (*CASES, *MORE) if n != DYNAMIC],
)
def exact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = replace(quantized(config_of(request.param), tmp_path_factory.mktemp("family")), asked=EXACT)
    path = exporter.export(model, tmp_path_factory.mktemp("x") / "onnx")
    return Exported(model, path, trace(model.config), np.random.default_rng(1).integers(5, VOCABULARY, LENGTH))


def feed(decoder: Decoder, tokens: np.ndarray) -> dict[str, np.ndarray]:
    ones = np.ones_like(tokens)
    heads = {"input_ids": tokens, "attention_mask": ones, "position_ids": ones.cumsum(1) - 1}
    return heads | dict(decoder.cache)


def same(a: Floats, b: Floats) -> bool:
    return np.array_equal(np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32))


def interpreted(exact: Exported, device: str) -> dict[str, Floats]:
    given = feed(Decoder(session(exact.path)), exact.tokens[None])
    return {name: value.cpu().numpy() for name, value in Program(exact.path / "model.onnx", device)(given).items()}


def test_the_interpreter_has_all_that_is_kept():
    assert set() == KEPT - OPERATIONS.keys()


def test_the_folder_holds_the_model(exact: Exported):
    artifact = Artifact("onnx", exact.path, exporter.read_back(exact.path), exact.model.folder)
    assert artifact.root == merkle_root(exact.model.digests())
    assert artifact.program == "exact int16"


def test_runtime_and_interpreter_agree_bit_for_bit(exact: Exported):
    """Logits and caches, at every optimization level and thread count."""
    expected = interpreted(exact, "cpu")
    for level in LEVELS:
        for threads in (1, 2):
            run = session(exact.path, level, threads)
            names = [output.name for output in run.get_outputs()]
            found = dict(zip(names, run.run(None, feed(Decoder(run), exact.tokens[None])), strict=True))
            assert [n for n in names if not same(found[n], expected[n])] == [], (level, threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: PyTorch's own is not compared")
def test_a_gpu_gives_the_same_bits(exact: Exported):
    expected = interpreted(exact, "cpu")
    assert [n for n, value in interpreted(exact, "cuda").items() if not same(value, expected[n])] == []


def test_steps_give_the_bits_of_one_go(exact: Exported):
    run, tokens = session(exact.path), exact.tokens[None, : SHORT[0]]  # where frequencies do not follow the length
    whole, decoder = Decoder(run).step(tokens), Decoder(run)
    steps = [decoder.step(tokens[:, i : i + 1]) for i in range(tokens.shape[1])]
    assert same(np.concatenate(steps, 1), whole)


def test_padding_and_neighbours_change_no_bit(exact: Exported):
    run, short = session(exact.path), exact.tokens[: LENGTH - 7]
    tokens = np.stack([exact.tokens, np.concatenate([np.full(7, 3), short])])
    mask = np.ones_like(tokens)
    mask[1, :7] = 0
    batch = Decoder(run, batch=2).step(tokens, mask)
    assert same(batch[0], Decoder(run).step(exact.tokens[None])[0])
    assert same(batch[1, 7:], Decoder(run).step(short[None])[0])


def test_it_is_the_same_model(exact: Exported):
    """As near as an input of 16 bits allows whose low byte meets a weight's highest digit alone."""
    found = Decoder(session(exact.path)).step(exact.tokens[None])[0]
    assert apart(exact.expected, found) < 3e-3


def test_a_power_that_depends_on_the_length_is_refused_by_name(tmp_path: Path):
    model = replace(quantized(config_of(DYNAMIC), tmp_path), asked=EXACT)
    with pytest.raises(Refused, match=r"the program's Pow \(.*\) has no exact form"):
        exporter.export(model, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_what_has_no_exact_form_is_refused_by_name(tmp_path: Path):
    model = replace(quantized(LLAMA | {"hidden_act": "gelu"}, tmp_path), asked=EXACT)
    with pytest.raises(Refused, match=r"the program's (Gelu|Erf) \(.*\) has no exact form"):
        exporter.export(model, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
