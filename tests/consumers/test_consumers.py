"""An exported ONNX folder, unchanged, in optimum and onnxruntime-genai: the bits of a plain ONNX Runtime session.

Each consumer runs in an environment of its own (`make consumers`), with the ONNX Runtime of `constraints.txt`.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain import plain, prompts

from edgeqaf.report import compare_bits
from exporters.onnx.architecture import ARCHITECTURES

Exported = Callable[..., Path]
Consume = Callable[..., dict[str, Any]]
PAD = 1
LEVELS = (None, "1", "4")
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
# What ORTModelForCausalLM of optimum-onnx 0.1.0 takes for the size of a head and the number of key heads
# (modeling_decoder.py): hidden_size / num_attention_heads and num_attention_heads, but for these.
KNOWS_HEAD_DIM = {"gemma3_text"}
KNOWS_KEY_HEADS = {"llama", "mistral", "qwen2", "qwen3", "gemma3_text"}
WIDE = {"head_dim": 32}  # of 64 / 4 by default


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert "error" not in found, found["error"]
    assert np.array_equal(found["tokens"], expected["tokens"])
    assert not compare_bits(found["logits"], expected["logits"]).any()
    assert np.abs(expected["logits"]).max() > 0.1


@each_architecture
def test_optimum_gives_the_bits_of_a_plain_session_once_it_knows_the_heads(
    architecture: str, exported: Exported, optimum: Consume
):
    """A defect of optimum-onnx 0.1.0, whatever the export: it guesses the shape of its first, empty cache wrongly."""
    folder, asked = exported(architecture, **WIDE), prompts(PAD, left=True)
    wrong = {} if architecture in KNOWS_HEAD_DIM else {3: (16, 32)}
    wrong |= {} if architecture in KNOWS_KEY_HEADS else {1: (4, 2)}
    found = optimum(folder, asked, set={})
    if wrong:
        said = "".join(rf" index: {i} Got: {got} Expected: {right}\n" for i, (got, right) in sorted(wrong.items()))
        assert re.search(rf"Got invalid dimensions for input: past_key_values.* for .*\n{said}", str(found["error"]))
        found = optimum(folder, asked, set={"embed_size_per_head": 32, "num_key_value_heads": 2})
    assert_same(found, plain(folder, asked, None))


@pytest.mark.parametrize(("level", "same_as"), [(None, "1"), ("1", "1"), ("4", "4")])
@each_architecture
def test_genai_gives_the_bits_of_a_plain_session(
    architecture: str, level: str | None, same_as: str, exported: Exported, genai: Consume
):
    """By the folder's own configuration it keeps activations in float32: level 1."""
    folder, asked = exported(architecture, **WIDE), prompts(PAD, left=False)
    assert_same(genai(folder, asked, level), plain(folder, asked, same_as))


@pytest.mark.parametrize("level", LEVELS)
def test_a_real_model_in_optimum(level: str | None, storyteller: Path, optimum: Consume):
    asked = prompts(PAD, left=True)
    assert_same(optimum(storyteller, asked, level, set={}), plain(storyteller, asked, level))


def test_a_real_model_in_genai(storyteller: Path, genai: Consume):
    asked = prompts(PAD, left=False)
    assert_same(genai(storyteller, asked), plain(storyteller, asked, "1"))


def test_the_exact_profile_gives_the_same_bits_in_both(exact: Path, optimum: Consume, genai: Consume):
    """Padded on the left or on the right: each prompt's own logits, step for step, at whatever level."""
    left, right = prompts(PAD, left=True), prompts(PAD, left=False)
    expected = plain(exact, left, None)
    assert_same(plain(exact, right, "4"), expected)
    assert_same(optimum(exact, left, "1", set={}), expected)
    assert_same(genai(exact, right), expected)


def test_levels_are_told_apart(storyteller: Path):
    """The comparison above would see one level taken for the other."""
    asked = prompts(PAD, left=True)
    one, four, default = (plain(storyteller, asked, level)["logits"] for level in ("1", "4", None))
    assert compare_bits(one, four).mean() > 0.9
    assert not compare_bits(default, four).any()
