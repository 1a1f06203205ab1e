"""Runs on packed, repeated and leaking data; trackers; and what a dry run foretells."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeqaf import checkpoint, plan
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import Refused, RuntimeAbsent, UsageError
from edgeqaf.finetune import Settings, finetune
from edgeqaf.method import method_of
from edgeqaf.modeling import build
from edgeqaf.nn import qlinears
from edgeqaf.trackers import require_trackers

QUICK = {
    "method": "lora", "steps": 3, "batch": 4, "save_every": 2, "eval_every": 3, "max_length": 48, "threads": 1,
    "options": {"rank": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": f"Say number {i % 36}.", "completion": f"number: {i % 36}"} for i in range(40)]
    rows += [{"prompt": "word " * 60, "completion": "x"}]
    file = tmp_path_factory.mktemp("data") / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def settings(**changes: Any) -> Settings:
    return Settings(**{**QUICK, **changes})  # type: ignore[arg-type]


def test_a_packed_run_resumes_to_the_same_bits_and_counts_its_rows(
    tiny_model: QModel, data: Path, tmp_path: Path
) -> None:
    run = finetune(tiny_model.folder, data, tmp_path / "a", settings(packing=True, drop_duplicates=True))
    counts = {"rows": 41, "duplicates": 4, "leaked": 0, "too_long": 1, "held_out": 1}
    assert counts.items() <= run["rows"].items()
    assert run["rows"]["longest"] > 60
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name in ("edgeqaf.json", "adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / "b" / name).unlink()
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-000003", ignore_errors=True)
    chosen = settings(packing=True, drop_duplicates=True)
    assert finetune(tiny_model.folder, data, tmp_path / "b", chosen, resume=True) == run
    for name in ("adapter_model.safetensors", "log.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(Refused, match="was started with packing = True, not False"):
        finetune(tiny_model.folder, data, tmp_path / "b", settings(drop_duplicates=True), resume=True)
    plain = finetune(tiny_model.folder, data, tmp_path / "c", settings(drop_duplicates=True))
    assert plain["rows"] == run["rows"]
    assert plain["training_loss"] != run["training_loss"]


def test_the_first_loss_of_a_packed_run_is_that_of_its_rows(tiny_model: QModel, data: Path, tmp_path: Path) -> None:
    """All rows in one step, packed and not: one mean over the same tokens, in two orders of sums."""
    first = []
    for name, packing in (("a", False), ("b", True)):
        finetune(tiny_model.folder, data, tmp_path / name, settings(packing=packing, steps=1, batch=64, holdout=0.0))
        first.append(json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])["loss"])
    assert abs(first[0] - first[1]) < 1e-5 * first[0]


def test_a_leak_is_said_and_left_out(tiny_model: QModel, data: Path, tmp_path: Path, capsys: Any) -> None:
    held = tmp_path / "held.jsonl"
    rows = [{"prompt": f"Say number {i}.", "completion": f"number: {i}"} for i in (1, 50, 51)]
    held.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    run = finetune(tiny_model.folder, data, tmp_path / "run", settings(), eval_data=held)
    assert (run["rows"]["leaked"], run["rows"]["held_out"]) == (1, 2)
    said = capsys.readouterr().out
    assert "1 held-out rows are also in the training data" in said
    assert "4 of 41 rows repeat an earlier one" in said
    assert "1 rows are longer than 48 tokens" in said


def test_tensorboard_gets_the_losses_of_the_log(tiny_model: QModel, data: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    finetune(tiny_model.folder, data, tmp_path / "run", settings(), report_to=["tensorboard"])
    seen = events.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = {e.step: e.value for e in seen.Scalars("train/loss")}
    expected = {e["step"]: torch.tensor(e["loss"], dtype=torch.float32).item() for e in log if "loss" in e}
    assert losses == expected


def test_nothing_is_reported_unless_asked(
    tiny_model: QModel, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the environment of a cluster would have transformers do so."""
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "https://localhost:1")
    from transformers.integrations.integration_utils import KubeflowCallback

    def reported(*_: Any, **__: Any) -> None:
        raise AssertionError("reported")

    monkeypatch.setattr(KubeflowCallback, "on_train_begin", reported)
    finetune(tiny_model.folder, data, tmp_path / "run", settings())
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "checkpoints", "edgeqaf.json", "finetune.json", "log.jsonl",
    ]  # fmt: skip


def test_unknown_and_absent_trackers_are_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match="unknown tracker 'tensorbord'") as unknown:
        require_trackers(["tensorbord"])
    assert unknown.value.remedy.startswith("did you mean tensorboard? known: none, ")
    with pytest.raises(RuntimeAbsent, match="the tracker neptune is not installed") as absent:
        require_trackers(["neptune"])
    assert absent.value.remedy == "pip install neptune"


@pytest.mark.parametrize("method", ["lora", "lowrank", "lota"])
def test_a_plan_counts_what_a_run_then_does(method: str, tiny_model: QModel, data: Path, tmp_path: Path) -> None:
    chosen = settings(method=method, options={"rank": 4}, packing=True)
    planned = plan.plan(tiny_model.folder, data, chosen)
    assert planned["rows"] + planned["rows_held_out"] + planned["rows_too_long"] == 41
    assert (planned["rows_duplicate"], planned["rows_leaked"], planned["steps"]) == (4, 0, 3)
    assert planned["epochs"] == 3 * 4 / planned["sequences"]
    assert planned["memory_bytes"] == sum(planned["memory"].values())
    assert 0 < planned["seconds_per_step"] * 3 <= planned["seconds"]
    model_folder = checkpoint.load(tiny_model.folder)
    found, options = method_of(method, {"rank": 4})
    model = found.attach(build(model_folder.config, model_folder.tensors), options, 0)
    from edgeqaf.trainer import parameters

    assert planned["trained_parameters"] == sum(t.numel() for t in parameters(model).values())


def test_memory_is_the_storage_of_the_model(tiny_model: QModel) -> None:
    model = build(tiny_model.config, tiny_model.tensors)
    held = plan.storage(model)
    tensors = {t.data_ptr(): t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]}
    assert held["base"] + held["floats"] == sum(tensors.values())
    assert held["base"] == sum(t.numel() * t.element_size() for x in qlinears(model).values() for t in x.buffers())
    assert held["folded"] == held["adapter"] == held["gradients"] == held["optimizer"] == 0


def test_the_estimate_of_activations_is_near_what_autograd_keeps(tiny_model: QModel) -> None:
    """Within a tenth; of the logits autograd keeps one copy, the other is their gradient. It scales with the tokens."""
    method, options = method_of("lowrank", {"rank": 4})
    model: Any = method.attach(build(tiny_model.config, tiny_model.tensors), options, 0)
    parameters = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(5, 1000, (8, 40))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert loss.requires_grad
    foreseen = plan.step(model, 8, 40)
    assert 0.9 < (foreseen["activations"] + foreseen["logits"] / 2) / sum(kept.values()) < 1.1
    assert (
        plan.step(model, 16, 40)["activations"] == plan.step(model, 8, 80)["activations"] == 2 * foreseen["activations"]
    )


def test_beyond_the_memory_that_is_free_nothing_is_timed(
    tiny_model: QModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = settings(batch=10**9)
    planned = plan.plan(tiny_model.folder, data, huge)
    assert planned["seconds"] is planned["seconds_per_step"] is None
    assert planned["memory_bytes"] > 10**12
