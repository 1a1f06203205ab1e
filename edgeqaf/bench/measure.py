"""One cell, from the base to the artifacts: what `edgeqaf bench` keeps of it."""

import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeqaf import __version__, checkpoint, dist, evaluate, metrics, plugins, scoring
from edgeqaf.bench import tune
from edgeqaf.bench.cell import FLOAT, Cell
from edgeqaf.bench.contenders import CONTENDERS, FAMILIES, UNTUNED
from edgeqaf.bench.places import Places
from edgeqaf.bench.store import Result
from edgeqaf.bench.subjects import RUNTIMES, of_artifact, silent
from edgeqaf.bench.task import BenchTask, Material, batches, digest, material
from edgeqaf.checkpoint import QModel
from edgeqaf.digest import Tensor, file_sha256, merkle_root
from edgeqaf.jsonfile import read_json
from edgeqaf.method import Baseline, method_of
from edgeqaf.modeling import build
from edgeqaf.movement import layer_movements, movement, total
from edgeqaf.nn import qlinears, to_numpy
from edgeqaf.qtensor import QTensor, check
from edgeqaf.scoring import Subject
from edgeqaf.source import FloatModel
from edgeqaf.tokenizer import Tokenizer

QUANTIZER = "rtn"
ARITHMETIC = (
    "adapter", "blockwise", "combine", "exact", "gradient", "method", "nn", "noise", "optim", "packed", "qtensor",
    "residual",
)  # fmt: skip
CURVE = 60  # points that are kept of a training curve
Scores = dict[str, dict[str, dict[str, float]]]


class Bench:
    """What one cell is measured with: its material, tokenizer and questions."""

    def __init__(self, cell: Cell, places: Places) -> None:
        self.cell, self.places = cell, places
        self.folder = places.base(cell.model, cell.grid)
        self.task: BenchTask = plugins.find("tasks", cell.task)
        self.material = _material(cell.task, places.data, places.models[cell.model], cell.choosing)
        self.tokenizer = Tokenizer(self.folder)

    def in_torch(self, model: nn.Module) -> dict[str, float]:
        """The score of a model in memory."""
        return self.score(scoring.in_torch("in memory", None, self.folder, model), answers=self.asks)

    @property
    def asks(self) -> bool:
        """Whether questions are answered too: always on the first seed, on others by the main contenders."""
        first = self.cell.seed == 0 or CONTENDERS[self.cell.contender].answers
        return first and not self.cell.choosing

    def held_out_loss(self, model: nn.Module) -> float:
        found = list(evaluate.losses(model.eval(), self.tokenizer.pad, self.material.held_out))
        return float(metrics.of_losses(found)["loss"])

    def score(self, subject: Subject, *, answers: bool) -> dict[str, float]:
        """loss, and where the task has answers, the metric of those."""
        wanted = [self.task.metric] if answers and self.task.metric else []
        found = scoring.score(
            subject, ["loss", *wanted], examples=self.material.held_out, tasks=self.material.questions, track=silent
        )
        result = {"loss": found["loss"]}
        if wanted:
            pairs = zip(self.material.questions, found["answers"], strict=True)
            said = [(self.task.extract(question.answer), self.task.extract(answer)) for question, answer in pairs]
            result |= metrics.of_answers([a for a, _ in said], [b for _, b in said], wanted)
            result.pop("matched", None)
        return result

    def from_artifacts(self, tensors: Mapping[str, Tensor], *, answers: bool) -> tuple[str, dict[str, Any]]:
        """The Merkle root of a quantized model, and its scores by runtime, from the files that are exported of it."""
        self.places.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.places.scratch) as scratch:
            folder = Path(scratch)
            config = read_json(self.folder / "config.json")
            options = {"grid": self.cell.grid, "quantizer": QUANTIZER}
            model = checkpoint.save(
                QModel(config, tensors, self.folder), folder / "model", kind="merged", parent=None, options=options
            )
            grids = {q.grid for _, q in model.quantized()}
            formats = [f for f in RUNTIMES if not any(plugins.find("exporters", f).refuses(grid) for grid in grids)]
            dist.export(model, formats, folder / "dist")
            found = {
                RUNTIMES[artifact.format]: self.score(of_artifact(artifact, self.places.runtime), answers=answers)
                for artifact in dist.open_dist(folder / "dist").artifacts
            }
        return model.root, found


def compute(cell: Cell, places: Places) -> Result:
    """Train, fold, export and score: everything that is kept of ``cell``."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    bench = Bench(cell, places)
    source: Any = FloatModel(bench.folder) if cell.grid == FLOAT else checkpoint.load(bench.folder)
    tensors = dict(source) if cell.grid == FLOAT else dict(source.tensors)
    model = build(source.config, tensors)
    result = _trained(bench, model, source, tensors) if cell.contender != UNTUNED else _untuned(bench, model, tensors)
    return result | {
        "held_out_rows": len(bench.material.held_out),
        "model_sha256": file_sha256(places.models[cell.model] / "model.safetensors"),
        "seconds": round(time.perf_counter() - started, 1),
        "tool": {"edgeqaf": __version__, "torch": torch.__version__, "machine": platform.machine()},
        "source": _source(),
    }


def _untuned(bench: Bench, model: nn.Module, tensors: Mapping[str, Tensor]) -> Result:
    """The floor: as it is."""
    if bench.cell.grid == FLOAT:
        return {"scores": {"float": {"torch": bench.in_torch(model)}}, "lossless": True}
    root, scores = bench.from_artifacts(tensors, answers=True)
    return {"scores": {"stored": {"torch": bench.in_torch(model), **scores}}, "lossless": True, "root": root}


def _trained(bench: Bench, model: nn.Module, source: Any, tensors: Mapping[str, Tensor]) -> Result:
    cell, contender = bench.cell, CONTENDERS[bench.cell.contender]
    stream = batches(bench.material, cell.seed, cell.steps)
    if contender.method is None:
        method: Any = None
        trainee = tune.in_float(model, source.architecture, cell.contender, dict(cell.rates)["lr"], cell.steps)
    else:
        start = {"residual": str(bench.places.models[cell.model])} if contender.residual else {}
        method, options = method_of(contender.method, {**contender.options, **start, **dict(cell.rates)})
        trainee = tune.attached(model, method, options, cell.seed, cell.steps)
    record = tune.run(trainee, stream, bench.tokenizer.pad, lambda: bench.held_out_loss(trainee.model))
    if method is None:
        found = _of_floats(bench, trainee.model, tensors)
    elif isinstance(method, Baseline):
        found = _of_baseline(bench, trainee.model, method, tensors)
    else:
        found = _of_integers(bench, trainee.model, tensors)
    form = next(iter(found["scores"]))
    record.held_out.append((cell.steps, found["scores"][form]["torch"]["loss"]))
    return found | {
        "batches": digest(stream), "tokens": record.tokens, "training": _thinned(record.training),
        "held_out": record.held_out, "step_ms": record.step_ms(), "trained_bytes": trainee.trained_bytes(),
        "state_bytes": trainee.state_bytes(),
    }  # fmt: skip


@torch.no_grad()
def _of_integers(bench: Bench, model: nn.Module, tensors: Mapping[str, Tensor]) -> Result:
    """A method that folds: the integers, and how far they moved."""
    moved = layer_movements(model)
    scores = {"torch": bench.in_torch(model)}
    root = None
    if not bench.cell.choosing:
        folded = {name: check(to_numpy(layer.folded()), name) for name, layer in qlinears(model).items()}
        answers = CONTENDERS[bench.cell.contender].answers and bench.cell.seed == 0
        root, found = bench.from_artifacts({**tensors, **folded}, answers=answers)
        scores |= found
    return {"scores": {"stored": scores}, "lossless": True, "root": root} | _movements(bench.cell, moved)


@torch.no_grad()
def _of_baseline(bench: Bench, model: nn.Module, method: Baseline, tensors: Mapping[str, Tensor]) -> Result:
    """An adapter beside the integers: as it is, and merged in 16 bit and quantized again."""
    scores: Scores = {"float": {"torch": bench.in_torch(model)}}
    if bench.cell.choosing:
        return {"scores": scores, "lossless": False}
    grid, choose = plugins.find("grids", bench.cell.grid), plugins.find("quantizers", QUANTIZER)
    again = {name: choose(weights.numpy(), grid) for name, weights in method.merged_weights(model).items()}
    moved = {name: movement(_on_grid(tensors[name]), q) for name, q in again.items()}
    merged = {**tensors, **again}
    root, found = bench.from_artifacts(merged, answers=False)
    config = read_json(bench.folder / "config.json")
    scores["requantized"] = {"torch": bench.in_torch(build(config, merged)), **found}
    return {"scores": scores, "lossless": False, "root": root} | _movements(bench.cell, moved)


@torch.no_grad()
def _of_floats(bench: Bench, model: nn.Module, tensors: Mapping[str, Tensor]) -> Result:
    """Floats: as they are, and quantized afterwards."""
    scores: Scores = {"float": {"torch": bench.in_torch(model)}}
    if bench.cell.choosing:
        return {"scores": scores, "lossless": False}
    config = read_json(bench.folder / "config.json")
    choose = plugins.find("quantizers", QUANTIZER)
    trained: dict[str, Tensor] = {n: p.detach().numpy().copy() for n, p in model.named_parameters() if n in tensors}
    linear = [n for n in FloatModel(bench.folder) if FloatModel(bench.folder).is_linear(n)]
    for name in FAMILIES["symmetric"]:
        grid = plugins.find("grids", name)
        again = {n: choose(trained[n], grid) for n in linear if grid.fits(trained[n].shape[1])}
        scores[f"quantized {name}"] = {"torch": {"loss": bench.held_out_loss(build(config, {**trained, **again}))}}
    return {"scores": scores, "lossless": False}


def _movements(cell: Cell, moved: Mapping[str, Any]) -> Result:
    """Totals; of the first seed, every layer's too."""
    layers = {name: [m.weights, m.moved, m.zeros, m.zeros_moved, m.scales, m.scales_moved] for name, m in moved.items()}
    return {"moved": asdict(total(moved))} | ({"layers": layers} if cell.seed == 0 else {})


def _on_grid(tensor: Tensor) -> QTensor:
    assert isinstance(tensor, QTensor)
    return tensor


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `CURVE` points, each the mean of its neighbours, at their last step."""
    size = -(-len(points) // CURVE)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], round(sum(loss for _, loss in group) / len(group), 5)) for group in groups]


@lru_cache(maxsize=1)
def _source() -> str:
    """Digest of the code that decides what a run computes, so that a report can say of how many states it is."""
    package = Path(__file__).resolve().parents[1]
    files = [file for folder in ("adapters", "kernels/cpu") for file in (package / folder).glob("*.py")]
    files += [package / f"{name}.py" for name in ARITHMETIC]
    return merkle_root({file.relative_to(package).as_posix(): file_sha256(file) for file in files})


@lru_cache(maxsize=8)
def _material(task: str, data: Path, folder: Path, choosing: bool) -> Material:
    return material(plugins.find("tasks", task), data, Tokenizer(folder), choosing=choosing)
