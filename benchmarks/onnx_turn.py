"""One contestant of `onnx_runtimes.py`: a process that loads an ONNX folder and takes a turn for each line it is given.

It needs onnxruntime, onnxruntime-genai and numpy alone. A turn prints, as JSON, the seconds of a prompt, the median and
the least of a token after it, and the peak memory of the process so far in MB.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

LEVEL = "session.qdq_matmulnbits_accuracy_level"
Turn = Callable[[np.ndarray, int], list[float]]


def ort(job: dict[str, Any]) -> Turn:
    """A plain session, its cache handed from run to run."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    if job["level"]:
        options.add_session_config_entry(LEVEL, job["level"])
    session = onnxruntime.InferenceSession(f"{job['folder']}/model.onnx", options)
    inputs = {i.name: i.shape for i in session.get_inputs() if i.name.startswith("past_key_values.")}

    def turn(prompt: np.ndarray, tokens: int) -> list[float]:
        cache = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in inputs.items()}
        new, total, taken = prompt, 0, []
        for _ in range(tokens + 1):
            total += new.shape[1]
            feed = {
                "input_ids": new,
                "attention_mask": np.ones((1, total), np.int64),
                "position_ids": np.arange(total - new.shape[1], total)[None],
            }
            start = time.perf_counter()
            logits, *present = session.run(None, feed | cache)
            new = logits[:, -1].argmax(1)[:, None]
            taken.append(time.perf_counter() - start)
            cache = dict(zip(inputs, present, strict=True))
        return taken

    return turn


def genai(job: dict[str, Any]) -> Turn:
    """onnxruntime-genai's own loop."""
    import onnxruntime_genai as og

    options = {"intra_op_num_threads": job["threads"]} | ({LEVEL: job["level"]} if job["level"] else {})
    config = og.Config(job["folder"])
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)

    def turn(prompt: np.ndarray, tokens: int) -> list[float]:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=prompt.shape[1] + tokens + 1, min_length=prompt.shape[1] + tokens + 1)
        generator = og.Generator(model, parameters)
        start = time.perf_counter()
        generator.append_tokens(prompt.astype(np.int32))
        generator.generate_next_token()  # chooses from the prompt's logits
        taken = [time.perf_counter() - start]
        for _ in range(tokens):
            start = time.perf_counter()
            generator.generate_next_token()
            taken.append(time.perf_counter() - start)
        return taken

    return turn


def main() -> None:
    job = json.loads(sys.argv[1])
    turn = {"ort": ort, "genai": genai}[job["runtime"]](job)
    prompt = np.random.default_rng(0).integers(5, 255, (1, job["prompt"]))
    for _ in sys.stdin:
        first, *rest = turn(prompt, job["tokens"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found = {"prompt": first, "one": statistics.median(rest), "best": min(rest), "mb": peak}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
