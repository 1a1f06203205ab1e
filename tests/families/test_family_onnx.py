"""ONNX Runtime computes what transformers does, for every family: in one go, in steps, in padded batches.

Both run the same decoded integers in float32, so what is left between them is the order of float32 sums. And other
models are far away: a changed setting, a bias left out or layers of another kind give other logits.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from family_models import CASES, LLAMA3, SMALL, VOCABULARY, random_tensors
from transformers import DynamicCache

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.digest import Floats, merkle_root, tensor_digest
from edgeqaf.errors import Refused
from edgeqaf.modeling import build
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.source import LINEARS, is_linear
from exporters.onnx import exporter, graph
from exporters.onnx.architecture import ACTIVATIONS, ARCHITECTURES
from exporters.onnx.trace import Traced, trace

LENGTH = 40  # more than every window and every original length of the cases
SHORT = (31, 26)  # lengths that follow no other frequencies, and yet are beyond the windows
LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e4, **SMALL}
MORE = {  # what llama.cpp cannot do
    "llama biases": LLAMA | {"attention_bias": True, "mlp_bias": True, "rope_scaling": LLAMA3, "head_dim": 32},
    "llama dynamic": LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 32},
    "qwen3 windows": LLAMA
    | {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
}
QUICK = (
    "llama biases", "mistral v0.1", "qwen2 windows", "qwen3 yarn", "gemma 2 2B", "gemma 3 4B", "phi 3.5 mini, long",
)  # fmt: skip
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in (*CASES, *MORE)]
KINDS = ("qwen2 windows", "gemma 2 2B", "gemma 3 4B")  # layers with a window and layers without
# Settings of config.json, where it has them: what each is changed to.
CHANGES: Mapping[str, Callable[[Any], Any]] = {
    "rms_norm_eps": lambda x: 0.1,
    "rope_theta": lambda x: x * 3,
    "sliding_window": lambda x: x + 8,
    "attn_logit_softcapping": lambda x: x / 20,
    "final_logit_softcapping": lambda x: x / 4,
    "query_pre_attn_scalar": lambda x: x * 2,
}


@dataclass(frozen=True)
class Exported:
    """model: its linears on q4_0; path: its ONNX folder; traced: the program in it; tokens: a prompt."""

    model: QModel
    path: Path
    traced: Traced
    tokens: np.ndarray

    @cached_property
    def reference(self) -> Any:
        return build(self.model.config, self.decoded)

    @cached_property
    def decoded(self) -> dict[str, Floats]:
        return {n: decode(t) if isinstance(t, QTensor) else t for n, t in self.model.tensors.items()}

    @cached_property
    def session(self) -> Any:
        return session(self.path, "fused level 1")

    @cached_property
    def expected(self) -> Floats:
        return logits(self.reference, self.tokens)


def logits(model: Any, tokens: np.ndarray) -> Floats:
    """transformers' logits [tokens, vocabulary]."""
    with torch.no_grad():
        found: Floats = model(torch.from_numpy(tokens[None])).logits[0].numpy()
    return found


def session(path: Path, configuration: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if configuration == "off":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return onnxruntime.InferenceSession(str(path / graph.MODEL), options)


class Decoder:
    """A session and its cache."""

    def __init__(self, session: Any, batch: int = 1) -> None:
        self.session = session
        inputs = {i.name: i.shape for i in session.get_inputs() if i.name.startswith("past_key_values")}
        self.cache = {name: np.zeros((batch, s[1], 0, s[3]), np.float32) for name, s in inputs.items()}
        self.mask = np.zeros((batch, 0), np.int64)

    def step(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> Floats:
        """Logits [batch, new, vocabulary] of new tokens [batch, new]; mask: 0 for padding."""
        self.mask = np.concatenate([self.mask, np.ones_like(tokens) if mask is None else mask], 1)
        positions = np.maximum(self.mask.cumsum(1) - 1, 0)[:, -tokens.shape[1] :]
        feed = {"input_ids": tokens, "attention_mask": self.mask, "position_ids": positions, **self.cache}
        found, *present = self.session.run(None, feed)
        self.cache = dict(zip(self.cache, present, strict=True))
        return np.asarray(found)


def apart(a: Floats, b: Floats) -> float:
    """The largest difference, as a part of the range of ``a``."""
    return float(np.abs(a - b).max() / (a.max() - a.min()))


def config_of(name: str) -> dict[str, Any]:
    return dict(MORE[name]) if name in MORE else CASES[name].config()


def quantized(config: Mapping[str, Any], folder: Path) -> QModel:
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    grid, quantize = plugins.find("grids", "q4_0"), plugins.find("quantizers", "absmax")
    kind, tensors = config["model_type"], random_tensors(config)
    carried = {name for name, t in tensors.items() if is_linear(kind, name) and grid.fits(t.shape[1])}
    return QModel(config, {n: quantize(t, grid) if n in carried else t for n, t in tensors.items()}, folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """A case by its name; exported once, read-only."""
    done: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in done:
            model = quantized(config_of(name), tmp_path_factory.mktemp("family"))
            path = exporter.export(model, tmp_path_factory.mktemp("dist") / exporter.filename)
            done[name] = Exported(
                model, path, trace(model.config), np.random.default_rng(1).integers(5, VOCABULARY, LENGTH)
            )
        return done[name]

    return get


# ---- the same model


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_holds_the_model(name: str, made: Callable[[str], Exported]) -> None:
    case = made(name)
    digests = {n: tensor_digest(n, stored.tensor) for n, stored in exporter.read_back(case.path).items()}
    assert merkle_root(digests) == merkle_root(case.model.digests())
    size = sum(file.stat().st_size for file in case.path.iterdir())
    assert abs(exporter.plan(case.model) - size) <= size // 20


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("configuration", ["off", "fused level 1"])
def test_a_prompt_gives_transformers_logits(name: str, configuration: str, made: Callable[[str], Exported]) -> None:
    case = made(name)
    found = Decoder(session(case.path, configuration)).step(case.tokens[None])[0]
    assert apart(case.expected, found) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_steps_give_the_logits_of_transformers_steps(name: str, made: Callable[[str], Exported]) -> None:
    """A few tokens, then one by one across windows and original lengths, both with a cache."""
    case = made(name)
    decoder, cache = Decoder(case.session), DynamicCache(config=case.reference.config)
    for tokens in np.split(case.tokens, [11, *range(12, LENGTH)]):
        with torch.no_grad():
            expected = case.reference(torch.from_numpy(tokens[None]), past_key_values=cache).logits.numpy()
        assert apart(expected, decoder.step(tokens[None])) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_gives_the_logits_of_its_prompts(name: str, made: Callable[[str], Exported]) -> None:
    case = made(name)
    longest = max(SHORT)
    prompts = [case.tokens[:length] for length in SHORT]
    rows = np.stack([np.pad(p, (longest - len(p), 0)) for p in prompts])
    mask = np.stack([np.arange(longest) >= longest - len(p) for p in prompts]).astype(np.int64)
    decoder = Decoder(case.session, batch=len(SHORT))
    found = np.concatenate([decoder.step(rows[:, :9], mask[:, :9]), decoder.step(rows[:, 9:], mask[:, 9:])], 1)
    for prompt, row in zip(prompts, found, strict=True):
        assert apart(logits(case.reference, prompt), row[-len(prompt) :]) < 1e-5


# ---- and no other


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_counts(name: str, made: Callable[[str], Exported]) -> None:
    case = made(name)
    config = dict(case.model.config)
    found = Decoder(case.session).step(case.tokens[None])[0]
    for key in (key for key in CHANGES if config.get(key) is not None and key not in _deaf(config)):
        other = build(config | {key: CHANGES[key](config[key])}, case.decoded)
        assert apart(logits(other, case.tokens), found) > 1e-3, key


@pytest.mark.parametrize("name", NAMES)
def test_every_vector_counts(name: str, made: Callable[[str], Exported]) -> None:
    """Biases and norms, each kind of them in turn left out in the last layer."""
    case = made(name)
    found = Decoder(case.session).step(case.tokens[None])[0]
    last = f"model.layers.{case.model.config['num_hidden_layers'] - 1}."
    for vector in (n for n, t in case.decoded.items() if n.startswith(last) and t.ndim == 1):
        other = build(case.model.config, case.decoded | {vector: np.zeros_like(case.decoded[vector])})
        assert apart(logits(other, case.tokens), found) > 1e-3, vector


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_of_each_layer_counts(name: str, made: Callable[[str], Exported], tmp_path: Path) -> None:
    case = made(name)
    tensors = sorted(case.model.tensors.items())
    kept = {n: (tuple(t.shape), t.grid if isinstance(t, QTensor) else None) for n, t in tensors}
    swapped = graph.build(replace(case.traced, layers=case.traced.layers[::-1]), kept, case.model.asked.onnx)
    (tmp_path / graph.MODEL).write_bytes(swapped)
    (tmp_path / graph.DATA).hardlink_to(case.path / graph.DATA)
    found = Decoder(session(tmp_path, "off")).step(case.tokens[None])[0]
    assert apart(case.expected, found) > 1e-3


def _deaf(config: Mapping[str, Any]) -> list[str]:
    """Settings that mean nothing to this model: a window that is off, or wider than the prompt."""
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return [] if window and window < LENGTH else ["sliding_window"]


# ---- what is taken, and what is refused


def test_what_can_be_quantized_can_be_exported() -> None:
    assert sorted(ARCHITECTURES) == sorted(LINEARS)
    assert {config_of(name)["model_type"] for name in QUICK} == set(ARCHITECTURES)


def refusal(config: Mapping[str, Any], folder: Path) -> str:
    with pytest.raises(Refused) as refused:
        exporter.plan(QModel(config, {"model.norm.weight": np.ones(64, np.float32)} | dict.fromkeys("ab"), folder))
    return refused.value.cause


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "mixtral"}, "architecture 'mixtral' has no ONNX export"),
        ({"model_type": "qwen3_moe"}, "architecture 'qwen3_moe' has no ONNX export"),
        ({"hidden_act": "relu2"}, f"hidden_act is 'relu2'; ONNX export knows {', '.join(ACTIVATIONS)}"),
        ({"hidden_activation": "xielu"}, "hidden_activation is 'xielu'"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types has 'linear_attention'"),
        ({"rope_scaling": {"rope_type": "mrope"}}, "rope type is 'mrope'"),
        ({"rope_scaling": [8.0]}, "rope_scaling is [8.0]"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {}}},
            "full_attention layers rotate by 'dynamic'",
        ),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is set"),
    ],
)
def test_what_the_graph_cannot_hold_is_refused_by_name(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert reason in refusal(LLAMA | changes, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_transformers(activation: str, tmp_path: Path) -> None:
    model = quantized(LLAMA | {"hidden_act": activation, "num_hidden_layers": 1}, tmp_path)
    made = Exported(model, exporter.export(model, tmp_path / "onnx"), trace(model.config), np.arange(5, 5 + LENGTH))
    assert apart(made.expected, Decoder(made.session).step(made.tokens[None])[0]) < 1e-5
