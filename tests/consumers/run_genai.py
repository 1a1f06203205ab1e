"""onnxruntime-genai does `jobs`. It takes pad tokens at the end of a prompt for padding, as its tokenizer puts them."""

import json
from typing import Any

import numpy as np
import onnxruntime_genai as og
from jobs import LEVEL, take


def run(job: dict[str, Any]) -> dict[str, Any]:
    config = og.Config(job["folder"])
    options = {"intra_op_num_threads": 1} | ({LEVEL: job["level"]} if job["level"] else {})
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)
    ids = np.array(job["ids"], np.int32)
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(batch_size=len(ids), max_length=ids.shape[1] + job["steps"])
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids)
    tokens, logits = [], []
    for _ in range(job["steps"]):
        logits.append(np.array(generator.get_logits())[:, -1])
        generator.generate_next_token()
        tokens.append(np.array(generator.get_next_tokens()))
    return {"tokens": np.stack(tokens, 1), "logits": np.stack(logits)}


take(run)
