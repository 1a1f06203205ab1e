"""A LoRA that peft trained and saved: read to the bit, and whatever is more than LoRA refused by its key."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from edgeqaf import checkpoint, cli, peft_adapter, plugins
from edgeqaf.console import be_quiet
from edgeqaf.errors import Refused
from edgeqaf.modeling import build

# peft 0.21 asks transformers 5.23 for a property under its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.tensor([[5, 6, 7, 8, 100, 200, 4000, 3]])
UP = "model.layers.1.mlp.up_proj"
PATTERNS = {"rank_pattern": {"q_proj": 3, UP: 5}, "alpha_pattern": {"layers.0.mlp.up_proj": 2.5}}
SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": PATTERNS,
    "patterns, rslora": PATTERNS | {"use_rslora": True},
    "one layer": {"layers_to_transform": [1]},
    "all but one": {"exclude_modules": ["q_proj"]},
    "dropout": {"lora_dropout": 0.1, "init_lora_weights": "gaussian"},
}


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def adapter(float_model: Path, folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A LoRA over the float model, every factor drawn at random, saved by peft."""
    given = {"r": 4, "lora_alpha": 7, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"} | settings
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(float_model), peft.LoraConfig(**given))
    generator = torch.Generator().manual_seed(0)
    for name, values in model.named_parameters():
        if "lora_" in name:
            values.data = torch.randn(values.shape, generator=generator).mul(0.1).to(dtype)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def lora(tiny_float_model: Path, tmp_path: Path) -> Path:
    return adapter(tiny_float_model, tmp_path / "adapter")


def quantized(base: Path) -> torch.nn.Module:
    stored = checkpoint.load(base)
    return build(stored.config, stored.tensors)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_what_peft_computes_over_the_same_base(settings, dtype, tiny_float_model, tiny_base, tmp_path):
    folder = adapter(tiny_float_model, tmp_path / "adapter", dtype, **SETTINGS[settings])
    ours = peft_adapter.attach(quantized(tiny_base), folder)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder)
    assert torch.equal(logits(ours), logits(theirs))
    assert not torch.equal(logits(ours), logits(quantized(tiny_base)))


def test_our_own_lora_run_is_read_as_well(tuned, tiny_base):
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), tuned("lora"))
    assert torch.equal(logits(peft_adapter.attach(quantized(tiny_base), tuned("lora"))), logits(theirs))


def test_merged_weights_are_base_plus_scaled_product(lora, tiny_base):
    model = peft_adapter.attach(quantized(tiny_base), lora)
    merged = plugins.find("adapters", "lora").merged_weights(model)
    factors = load_file(lora / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{UP}.lora_{side}.weight"] for side in "AB")
    base = quantized(tiny_base).get_submodule(UP).weight
    assert torch.equal(merged[f"{UP}.weight"], (base + b @ a * (7 / 4)).bfloat16().float())
    assert len(merged) == 4


def config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")

    return edit


def tensors(**changes: Any) -> Callable[[Path], None]:
    """Changes by the last parts of a name within ``base_model.model``; None takes a tensor away."""

    def edit(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        found = load_file(file) | {f"base_model.model.{k}": v for k, v in changes.items()}
        save_file({name: values for name, values in found.items() if values is not None}, file)

    return edit


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another type": (config(peft_type="LOHA"), r"peft_type is 'LOHA', not 'LORA'"),
    "ours": (config(peft_type="EDGEQAF"), r"peft_type is 'EDGEQAF', not 'LORA'"),
    "DoRA": (config(use_dora=True), r"use_dora is True: DoRA rescales"),
    "bias": (config(bias="lora_only"), r"bias is 'lora_only': trained biases"),
    "a bias of the LoRA": (config(lora_bias=True), r"lora_bias is True: trained biases"),
    "whole layers": (config(modules_to_save=["lm_head"]), r"modules_to_save is \['lm_head'\]: whole layers"),
    "a changed base": (config(init_lora_weights="pissa"), r"init_lora_weights is 'pissa': it began by changing"),
    "a key of tomorrow": (config(use_xyz={"k": 1}), r"use_xyz is \{'k': 1\}"),
    "fan in, fan out": (config(fan_in_fan_out=True), r"fan_in_fan_out is True"),
    "rank is text": (config(r="4"), r"r is '4', not a rank of 1 to 4096"),
    "rank is true": (config(r=True), r"r is True, not a rank"),
    "a huge rank": (config(r=10**9), r"r is 1000000000, not a rank"),
    "alpha is infinite": (config(lora_alpha=float("inf")), r"lora_alpha is inf, not a finite number"),
    "no alpha": (config(lora_alpha=None), r"lora_alpha is None, not a finite number"),
    "a rank in a pattern": (config(rank_pattern={"up_proj": 0}), r"rank_pattern\['up_proj'\] is 0, not a rank"),
    "a regular expression": (config(alpha_pattern={"(a+)+$": 1}), r"alpha_pattern is \{'\(a\+\)\+\$': 1\}, not names"),
    "another rank": (config(r=5), r"lora_A\.weight is F32 \[4, 64\]; the config's rank and the base make it \[5, 64\]"),
    "a pickle": (pickled, r"adapter_model\.bin is a pickle"),
    "a missing factor": (tensors(**{f"{UP}.lora_B.weight": None}), rf"{UP} has lora_A but not the other factor"),
    "a magnitude": (tensors(**{f"{UP}.lora_magnitude_vector": torch.ones(96)}), r"lora_magnitude_vector is no factor"),
    "embeddings": (tensors(**{"model.embed_tokens.lora_embedding_A": torch.ones(4, 64)}), r"embedding_A is no factor"),
    "a float layer": (tensors(**{"lm_head.lora_A.weight": torch.ones(4, 64)}), r"lm_head is no quantized layer"),
    "another model": (tensors(**{f"{UP}.lora_A.weight": torch.ones(4, 96)}), r"F32 \[4, 96\]; .* make it \[4, 64\]"),
    "integers": (tensors(**{f"{UP}.lora_A.weight": torch.ones(4, 64, dtype=torch.int8)}), r"is I8 \[4, 64\]"),
    "not a number": (tensors(**{f"{UP}.lora_A.weight": torch.full((4, 64), float("nan"))}), r"values that are not fin"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_more_or_less_than_a_plain_lora_is_refused(fault, lora, tiny_base):
    edit, says = REFUSED[fault]
    edit(lora)
    with pytest.raises(Refused, match=says):
        peft_adapter.attach(quantized(tiny_base), lora)


def test_an_empty_or_truncated_file_is_refused(lora, tiny_base):
    file = lora / "adapter_model.safetensors"
    for content, says in ((file.read_bytes()[:100], "adapter_model.safetensors"), (b"", "adapter_model.safetensors")):
        file.write_bytes(content)
        with pytest.raises(Refused, match=says):
            peft_adapter.attach(quantized(tiny_base), lora)
    save_file({}, file)
    with pytest.raises(Refused, match="holds no tensor"):
        peft_adapter.attach(quantized(tiny_base), lora)


def evaluate(capsys: pytest.CaptureFixture[str], *line: object) -> tuple[int, Any, str]:
    code = cli.run(["eval", *map(str, line), "--json"])
    be_quiet(False)
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else None, said.err


def test_eval_scores_it_unmerged_and_merged_and_quantized_again(lora, tiny_base, rows, capsys):
    line = (tiny_base, "--data", rows, "--rows", 2, "--metric", "loss")
    scores = []
    for options, label in (
        ((), "base"),
        (("--lora", lora), "LoRA adapter, unmerged"),
        (("--lora", lora, "--requantize"), "LoRA adapter, merged in 16 bit and quantized again"),
    ):
        code, said, _ = evaluate(capsys, *line, *options)
        assert (code, said["label"]) == (0, label)
        assert (said["root"] is None) == bool(options)
        scores.append(said["loss"])
    assert len(set(scores)) == 3


def test_eval_refuses_it_on_what_is_no_base(lora, merged, tuned, rows, capsys):
    for folder, kind in ((merged, "merged"), (tuned("lora"), "run")):
        code, _, err = evaluate(capsys, folder, "--data", rows, "--lora", lora)
        assert code == 2
        assert f"--lora is for a base folder; {folder} is a {kind} folder" in err
