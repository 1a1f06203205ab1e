"""ORTModelForCausalLM does `jobs`. ``mask`` tells padding; ``set`` are attributes of the loaded model to change."""

from typing import Any

import onnxruntime as ort
import torch
from jobs import LEVEL, take
from optimum.onnxruntime import ORTModelForCausalLM


def run(job: dict[str, Any]) -> dict[str, Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if job["level"]:
        options.add_session_config_entry(LEVEL, job["level"])
    model = ORTModelForCausalLM.from_pretrained(job["folder"], session_options=options)
    for name, value in job["set"].items():
        assert hasattr(model, name)
        setattr(model, name, value)
    made = model.generate(
        torch.tensor(job["ids"]), attention_mask=torch.tensor(job["mask"]), do_sample=False, eos_token_id=None,
        max_new_tokens=job["steps"], return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return {"tokens": made.sequences[:, -job["steps"] :].numpy(), "logits": torch.stack(made.logits).numpy()}


take(run)
