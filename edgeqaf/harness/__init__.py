"""lm-eval's tasks on any subject: the harness asks, a PyTorch model or an exported artifact answers.

A task is a YAML file of the lm-eval project (EleutherAI/lm-evaluation-harness, docs/new_task_guide.md).
Prompts, few-shot examples, filters and metrics are the harness's own.

tasks.py   task files, loaded
model.py   a subject as lm-eval wants a model
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from lm_eval import __version__
from lm_eval.api.metrics import mean, mean_stderr
from lm_eval.evaluator import evaluate as harness
from lm_eval.tasks import TaskManager

from edgeqaf.harness.model import SubjectLM
from edgeqaf.harness.tasks import guarded, load, set_shots
from edgeqaf.scoring import Subject


def evaluate(subject: Subject, places: Sequence[Path], *, rows: int | None = None, shots: int | None = None,
             max_length: int | None = None) -> dict[str, Any]:  # fmt: skip
    """Run the tasks at ``places`` (task or group files, or folders of them), and return what the harness found.

    rows:  of each task, at most. shots: few-shot examples, where the task does not fix them.
    Returns tasks: {name: {metric: value}}, groups likewise, samples: {name: [...]}, max_length, truncated, harness.
    Raises Refused for what is not a task, naming the file, and whatever the subject raises.
    """
    model = SubjectLM(subject, max_length)
    datasets.disable_progress_bars()
    with guarded(", ".join(map(str, places))):
        loaded = TaskManager(include_defaults=False).load([task for place in places for task in load(place)])
        for task in loaded["tasks"].values():
            set_shots(task, shots)
        found = harness(model, loaded, limit=rows, bootstrap_iters=0)  # it would fork this process to bootstrap
    return {
        "tasks": {name: _numbers(task, found["results"][name], found["samples"][name])
                  for name, task in sorted(loaded["tasks"].items())},
        "groups": {name: _plain(values) for name, values in sorted(found.get("groups", {}).items())},
        "samples": {name: [_kept(one) for one in rows] for name, rows in found["samples"].items()},
        "max_length": model.max_length, "truncated": model.truncated, "harness": f"lm_eval {__version__}",
    }  # fmt: skip


def _numbers(task: Any, found: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """rows, each metric, and METRIC_stderr where the metric is a mean over rows; one of a filter as METRIC,FILTER."""
    result = {"rows": found["sample_len"]} | _plain(found)
    for metric, aggregate in task.aggregation().items():
        for name in {sample["filter"] for sample in samples} if aggregate is mean else ():
            values = [sample[metric] for sample in samples if sample["filter"] == name and metric in sample]
            if len(values) > 1:
                result[f"{metric}_stderr" + ("" if name == "none" else f",{name}")] = mean_stderr(values)
    return result


def _kept(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A row's question, target, requests and answers, in what JSON can hold; no hashes, no answer twice."""
    kept = {key: value for key, value in sample.items() if key != "resps" and not key.endswith("_hash")}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics, which lm-eval names "acc,none": METRIC,FILTER. Numbers only."""
    return {key.removesuffix(",none"): value for key, value in values.items()
            if "," in key and isinstance(value, int | float)}  # fmt: skip
