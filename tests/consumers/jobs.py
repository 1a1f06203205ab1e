"""Jobs for a consumer of ONNX folders, which lives in an environment, and so in a process, of its own.

A job is a line of JSON on standard input; it names the ``folder``, the accuracy ``level`` (null: the consumer's own),
the prompts' ``ids``, how many ``steps`` to generate, and the file ``to`` write to. That file, an .npz, gets the
``tokens`` [batch, steps] of greedy generation and their ``logits`` [steps, batch, vocabulary], or the ``error`` that
the consumer raised. Its name is printed when it is there.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

LEVEL = "session.qdq_matmulnbits_accuracy_level"


def take(run: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Have ``run`` do every job of standard input."""
    for line in sys.stdin:
        job = json.loads(line)
        try:
            found = run(job)
        except Exception as error:  # what the consumer says is what a test asks about
            found = {"error": str(error)}
        np.savez(job["to"], **found)
        print(job["to"], flush=True)
