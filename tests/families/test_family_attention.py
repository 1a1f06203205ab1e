"""Attention without its turned axes and its growing cache is the traced one, bit for bit, for every family."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from families.family_models import CASES, VOCABULARY, random_tensors
from test_family_onnx import Decoder, session

from edgeqaf.checkpoint import QModel
from exporters.onnx import exporter, graph, trace
from exporters.onnx.architecture import ARCHITECTURES

# What moves data in one layer, by kind of config.json: none, where a projection's heads are taken as they are.
MOVES = {
    "llama 3.2 1B": {},
    "mistral v0.1": {},
    "qwen2.5 0.5B": {},
    "qwen3 1.7B": {"Reshape": 4},  # norms of heads: there and back, for queries and keys
    "gemma 3 1B": {"Reshape": 4},
    # Its softcap lies between the products, so it has no Attention: heads of a group are rows of one product.
    "gemma 2 2B": {"Reshape": 8, "Transpose": 5, "Concat": 2},
    # It rotates a part of each head, which is cut out, and cuts one projection into three.
    "phi 4 mini": {"Transpose": 4, "Reshape": 4, "Slice": 11, "Concat": 4, "Split": 1},
}
MOVING = ("Transpose", "Reshape", "Concat", "Slice", "Expand", "Split")
QUICK = ("llama 3.2 1B", "gemma 3 1B", "phi 4 mini")
PASTS = ([9, 1, 1, 5], [1, 12])


@pytest.fixture(scope="module", params=[n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MOVES])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """The name of a case, its folder, and the folder of the program as it was traced."""
    config = CASES[request.param].config()
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text("{}", "utf-8")
    model = QModel(config, random_tensors(config), folder)
    simple = exporter.export(model, folder / "onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "simplify", lambda *_: None)
        trace._trace.cache_clear()
        traced = exporter.export(model, folder / "traced")
    trace._trace.cache_clear()
    return request.param, simple, traced


@pytest.mark.parametrize("configuration", ["off", "fused level 1"])
@pytest.mark.parametrize("lengths", PASTS)
def test_no_bit_changes(both: tuple[str, Path, Path], configuration: str, lengths: list[int]) -> None:
    rng = np.random.default_rng(2)
    simple, traced = (Decoder(session(path, configuration), batch=2) for path in both[1:])
    for length in lengths:
        tokens, mask = rng.integers(5, VOCABULARY, (2, length)), np.ones((2, length), np.int64)
        mask[1, : length // 2] = 0
        assert simple.step(tokens, mask).tobytes() == traced.step(tokens, mask).tobytes()
        assert all(simple.cache[name].tobytes() == part.tobytes() for name, part in traced.cache.items())


def moves(path: Path) -> Counter[str]:
    """Operators of the first layer that compute nothing; weights are turned once, when the model is loaded."""
    nodes = onnx.load(path / graph.MODEL, load_external_data=False).graph.node
    own = [node for node in nodes if node.name.startswith("layers.0/") and not node.input[0].endswith(".weight")]
    return Counter(node.op_type for node in own if node.op_type in MOVING)


def test_what_is_left_computes(both: tuple[str, Path, Path]) -> None:
    name, simple, traced = both
    assert moves(simple) == MOVES[name]
    assert moves(traced).total() > moves(simple).total() or name == "gemma 2 2B"


def test_every_architecture_is_here() -> None:
    assert {CASES[name].config()["model_type"] for name in MOVES} == set(ARCHITECTURES)
