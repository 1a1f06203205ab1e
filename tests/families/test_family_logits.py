"""The logits of llama.cpp are those of transformers: for every family, at every position, from F32 files.

Keys and values in float32, flash attention off (`runtime_tests.ggml.model`). And the file's statements are
what makes them so: change any of them, and the logits are others.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_models import CASES

from edgeqaf import plugins
from edgeqaf.digest import Floats
from edgeqaf.protocols import RuntimeOptions
from exporters.gguf import families
from exporters.gguf.artifact import SIZES
from exporters.gguf.container import SEAL, Value, describe_tensors, seal
from exporters.gguf.reader import Contents, parse
from runtime_tests.ggml.library import load
from runtime_tests.ggml.model import Model

available = plugins.find("runtimes", "llama_cpp").availability(RuntimeOptions())
pytestmark = pytest.mark.skipif(available.version is None, reason=available.reason)

# What each statement is changed to, by its name after the architecture; the sizes are held by the tensors' shapes.
CHANGES: Mapping[str, Callable[[Any], Any]] = {
    "attention.layer_norm_rms_epsilon": lambda x: 0.1,
    "attention.sliding_window": lambda x: x + 8,
    "attn_logit_softcapping": lambda x: x / 20,
    "final_logit_softcapping": lambda x: x / 4,
    "rope.freq_base": lambda x: x * 3,
    "rope.freq_base_swa": lambda x: x * 3,
    "rope.scaling.attn_factor": lambda x: x * 1.1,
    "rope.scaling.factor": lambda x: x * 2,
    "rope.scaling.original_context_length": lambda x: 512 if x < 256 else 32,
}
SHAPES = (
    "block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "vocab_size", "attention.key_length", "attention.value_length", "rope.dimension_count",
)  # fmt: skip
UNHEARD = ("context_length", "rope.scaling.type")


def logits(file: Path, tokens: list[int]) -> Floats:
    model = Model(load(None), file, repack=False, threads=1)
    try:
        return model.logits(tokens)
    finally:
        model.close()


def apart(a: Floats, b: Floats) -> float:
    """The largest difference, as a part of the range of ``a``."""
    return float(np.abs(a - b).max() / (a.max() - a.min()))


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_the_model_that_transformers_does(name: str, make: Callable[[str], Any]) -> None:
    made = make(name)
    assert apart(made.logits(made.config), logits(made.file, made.tokens)) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_every_statement_of_the_file_counts(name: str, make: Callable[[str], Any], tmp_path: Path) -> None:
    made = make(name)
    contents, before = parse(made.file, SIZES), logits(made.file, made.tokens)
    family = families.of_file(contents.metadata)
    known = {*SHAPES, *UNHEARD, *_deaf(family.architecture, made.config)}
    own = [k.removeprefix(f"{family.architecture}.") for k in contents.metadata if k.startswith(family.architecture)]
    assert set(own) <= known | CHANGES.keys()
    for key in (key for key in own if key not in known):
        full = f"{family.architecture}.{key}"
        value = contents.metadata[full]
        entries = {**contents.metadata, full: Value(value.type, CHANGES[key](value.data))}
        path = written(contents, entries, tmp_path / f"{key}.gguf")
        assert apart(before, logits(path, made.tokens)) > 1e-3, key


@pytest.mark.parametrize("name", CASES)
def test_rope_factors_count(name: str, make: Callable[[str], Any], tmp_path: Path) -> None:
    made = make(name)
    contents, before = parse(made.file, SIZES), logits(made.file, made.tokens)
    family = families.of_file(contents.metadata)
    moved = {}
    for factors in (f for f in family.factor_names if f in contents.tensors):
        info = contents.tensors[factors]
        raw = bytearray(made.file.read_bytes())
        start = contents.start + info.offset
        raw[start : start + info.size] = (2 * np.frombuffer(raw, "<f4", info.size // 4, start)).tobytes()
        (tmp_path / "other.gguf").write_bytes(raw)
        moved[factors] = apart(before, logits(tmp_path / "other.gguf", made.tokens))
    assert not family.factors(made.config) or max(moved.values()) > 1e-3


def _deaf(architecture: str, config: Mapping[str, Any]) -> list[str]:
    """Statements that mean nothing to llama.cpp for this model."""
    if architecture != "phi3":
        return []
    scaling = config["rope_scaling"]
    choice = scaling and scaling["long_factor"] != scaling["short_factor"]  # Phi-4-mini's are the same
    return ["attention.sliding_window", *([] if choice else ["rope.scaling.original_context_length"])]


def written(contents: Contents, entries: Mapping[str, Value], path: Path) -> Path:
    """The file with other metadata."""
    infos = describe_tensors((i.name, i.shape, i.type, i.size) for i in contents.tensors.values())
    header = seal({key: value for key, value in entries.items() if key != SEAL}, infos)
    path.write_bytes(header + contents.path.read_bytes()[contents.start :])
    return path
