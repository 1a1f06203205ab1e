"""What a plain ONNX Runtime session makes of a folder: the reference for its other consumers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from families.family_models import SMALL
from jobs import LEVEL

from edgeqaf.digest import Floats


@dataclass(frozen=True)
class Prompts:
    """Two prompts, one shorter and padded; ids, and mask (0 where padding), are [2, tokens]."""

    ids: list[list[int]]
    mask: list[list[int]]
    steps: int = 6


def prompts(pad: int, left: bool) -> Prompts:
    long, short = (np.random.default_rng(n).integers(5, SMALL["vocab_size"], n).tolist() for n in (9, 5))
    fill, none = [pad] * 4, [0] * 4
    row, mask = (fill + short, none + [1] * 5) if left else (short + fill, [1] * 5 + none)
    return Prompts([long, row], [[1] * 9, mask])


def plain(folder: Path, prompts: Prompts, level: str | None) -> dict[str, Any]:
    """Greedy tokens and logits of a plain ONNX Runtime session on the folder's model."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if level:
        options.add_session_config_entry(LEVEL, level)
    session = ort.InferenceSession(folder / "model.onnx", options)
    inputs = {i.name: i for i in session.get_inputs() if i.name.startswith("past_key_values.")}
    cache = [np.zeros((2, i.shape[1], 0, i.shape[3]), np.float32) for i in inputs.values()]
    new, mask = np.array(prompts.ids), np.array(prompts.mask)
    tokens: list[np.ndarray] = []
    logits: list[Floats] = []
    for _ in range(prompts.steps):
        positions = (mask.cumsum(1) - 1).clip(0)[:, -new.shape[1] :]
        feed = {"input_ids": new, "attention_mask": mask, "position_ids": positions}
        whole, *cache = session.run(None, feed | dict(zip(inputs, cache, strict=True)))
        last = new.shape[1] - 1 - mask[:, -new.shape[1] :][:, ::-1].argmax(1)
        logits.append(whole[np.arange(2), last])
        tokens.append(logits[-1].argmax(1))
        new = tokens[-1][:, None]
        mask = np.concatenate([mask, np.ones_like(new)], 1)
    return {"tokens": np.stack(tokens, 1), "logits": np.stack(logits)}
