"""Run folders under peft's file names: LoRA is what it says, the rest is refused and never taken for LoRA."""

import json

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from edgeqaf.errors import Refused
from edgeqaf.hf.lora import LoraOverGrid
from edgeqaf.run import load_run

# peft 0.21 asks transformers 5.23 for a property under its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.tensor([[5, 6, 7, 8, 100, 200, 4000, 3]])


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def test_peft_loads_a_lora_run_over_its_base_to_the_bit(tuned, tiny_base):
    ours = load_run(tuned("lora"))[1]
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    alone = logits(base)
    theirs = peft.PeftModel.from_pretrained(base, tuned("lora"))
    assert torch.equal(logits(theirs), logits(ours))
    assert not torch.equal(logits(theirs), alone)
    with theirs.disable_adapter():
        assert torch.equal(logits(theirs), alone)


@pytest.mark.parametrize("load", [peft.AutoPeftModelForCausalLM, AutoModelForCausalLM], ids=lambda c: c.__name__)
def test_the_run_folder_alone_finds_its_base(load, tuned):
    assert torch.equal(logits(load.from_pretrained(tuned("lora"))), logits(load_run(tuned("lora"))[1]))


def test_a_lora_runs_config_is_pefts_and_its_tensors_have_pefts_names(tuned):
    config = peft.PeftConfig.from_pretrained(tuned("lora"))
    assert type(config) is peft.LoraConfig
    assert (config.r, config.lora_alpha, config.task_type) == (4, 32, "CAUSAL_LM")
    assert config.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    with safe_open(tuned("lora") / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = list(file.keys())
    assert len(names) == 2 * 7 * 2
    assert "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight" in names


def test_peft_saves_what_it_loaded(tuned, tiny_base, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    peft.PeftModel.from_pretrained(base, tuned("lora")).save_pretrained(tmp_path / "saved")
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), tmp_path / "saved")
    assert torch.equal(logits(again), logits(load_run(tuned("lora"))[1]))


@pytest.mark.parametrize("safely", [True, False])
def test_merging_a_lora_into_integers_is_refused_and_changes_nothing(safely, tuned, tiny_base):
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), tuned("lora"))
    before = logits(model)
    with pytest.raises(Refused, match="cannot be merged into the integers of grid q4_0"):
        model.merge_adapter(safe_merge=safely)
    assert torch.equal(logits(model), before)


def test_a_new_lora_trains_on_a_loaded_folder(tiny_base):
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), config)
    layers = [layer for layer in model.modules() if isinstance(layer, LoraOverGrid)]
    assert len(layers) == 2 * 2
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(layer.lora_B["default"].weight.grad.abs().sum() > 0 for layer in layers)


def test_a_run_that_is_no_lora_says_so_to_peft(tuned, tiny_base):
    config = json.loads((tuned("lowrank") / "adapter_config.json").read_text("utf-8"))
    assert config["peft_type"] == "EDGEQAF"
    assert not config.keys() & {"r", "lora_alpha", "target_modules"}
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    for load in (
        lambda: peft.PeftModel.from_pretrained(base, tuned("lowrank")),
        lambda: peft.PeftConfig.from_pretrained(tuned("lowrank")),
        lambda: AutoModelForCausalLM.from_pretrained(tuned("lowrank")),
    ):
        with pytest.raises(Refused, match="lives on its base's grid; peft has no layer for it"):
            load()


def test_peft_without_edgeqaf_takes_it_for_nothing_else(tuned, monkeypatch):
    assert "EDGEQAF" not in {kind.value for kind in peft.PeftType}
    monkeypatch.delitem(PEFT_TYPE_TO_CONFIG_MAPPING, "EDGEQAF")
    with pytest.raises(KeyError, match="EDGEQAF"):
        peft.PeftConfig.from_pretrained(tuned("lowrank"))
