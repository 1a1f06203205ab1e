"""What ONNX Runtime's accuracy level changes: level 4 rounds activations to 8 bits per block, level 1 keeps float32.

    edgeqaf quantize ../shared/models/storyteller-6m -o base
    edgeqaf export base -o dist --format onnx
    python benchmarks/onnx_levels.py dist ../shared/data/tinystories_sample.txt

The text is read in windows of 256 tokens by both. Printed are each level's loss in nats a token, the share of places at
which both put the same token first, and the divergence of level 4's distribution from level 1's; then, from the first
32 tokens of each window, how many of 64 greedy tokens are the same before the first that differs.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

WINDOW, PROMPT, MADE = 256, 32, 64


def session(model: Path, level: str, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    return onnxruntime.InferenceSession(model, options)


def run(session: Any, ids: np.ndarray, cache: list[np.ndarray] | None = None) -> list[np.ndarray]:
    """Logits [batch, tokens, vocabulary] of tokens after those in the cache, and the cache with them."""
    inputs = [i for i in session.get_inputs() if i.name.startswith("past_key_values.")]
    cache = cache or [np.zeros((len(ids), i.shape[1], 0, i.shape[3]), np.float32) for i in inputs]
    total = cache[0].shape[2] + ids.shape[1]
    feed = {
        "input_ids": ids,
        "attention_mask": np.ones((len(ids), total), np.int64),
        "position_ids": np.arange(total - ids.shape[1], total)[None].repeat(len(ids), 0),
    }
    found: list[np.ndarray] = session.run(None, feed | {i.name: c for i, c in zip(inputs, cache, strict=True)})
    return found


def generate(session: Any, ids: np.ndarray) -> np.ndarray:
    """Greedy tokens [batch, MADE]."""
    made = []
    logits, *cache = run(session, ids)
    for _ in range(MADE):
        made.append(logits[:, -1].argmax(1))
        logits, *cache = run(session, made[-1][:, None], cache)
    return np.stack(made, 1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    ids = np.array(Tokenizer.from_file(str(asked.dist / "onnx" / "tokenizer.json")).encode(asked.text.read_text()).ids)
    windows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)[: asked.windows]
    one, four = (session(asked.dist / "onnx" / "model.onnx", level, asked.threads) for level in "14")
    losses, same, apart = np.zeros(2), 0, 0.0
    for window in windows:
        p, q = (log_softmax(run(s, window[None, :-1])[0][0]) for s in (one, four))
        losses -= [level[np.arange(WINDOW - 1), window[1:]].sum() for level in (p, q)]
        same += int((p.argmax(1) == q.argmax(1)).sum())
        apart += float((np.exp(p) * (p - q)).sum())
    count = len(windows) * (WINDOW - 1)
    differ = generate(one, windows[:, :PROMPT]) != generate(four, windows[:, :PROMPT])
    until = np.where(differ.any(1), differ.argmax(1), MADE)
    print(f"{count} tokens: loss {losses[0] / count:.4f} at level 1, {losses[1] / count:.4f} at level 4")
    print(f"the same token first at {same / count:.2%}, KL {apart / count:.1e}")
    whole = f"{(until == MADE).sum()} of {len(until)} continuations"
    print(f"greedy: {whole} of {MADE} tokens are the same; the median differs after {np.median(until):.0f}")


if __name__ == "__main__":
    main()
