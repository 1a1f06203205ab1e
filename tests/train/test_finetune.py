"""A run's life: trained, resumed to the same bits, merged, and refused where it must be."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeqaf import checkpoint
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import Refused, UsageError, VerificationFailed
from edgeqaf.finetune import Settings, finetune
from edgeqaf.merge import merge, summary
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.run import load_run

QUICK = {"steps": 6, "batch": 4, "save_every": 2, "eval_every": 3, "max_length": 48, "threads": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "codes": {"lr": 0.5}, "lowrank": {"lr": 0.5, "rank": 4}, "lota": {"rank": 4}, "lora": {"rank": 4},
    "scale": {"lr": 0.1}, "codes+scale": {"lr": 0.5}, "q_bara": {"rank": 4},
}  # fmt: skip
LOSSLESS = ("codes", "lowrank", "lota", "scale", "codes+scale")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [{"prompt": f"Say number {i}.", "completion": f"number: {i}"} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def settings(method: str, **changes: Any) -> Settings:
    return Settings(method=method, options=OPTIONS[method], **{**QUICK, **changes})


@pytest.fixture(scope="module")
def runs(tiny_model: QModel, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for method in OPTIONS:
        finetune(tiny_model.folder, data, folder / method, settings(method))
    return {method: folder / method for method in OPTIONS}


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("done", [4, 6])
def test_resumed_run_ends_in_the_same_bits(
    method: str, done: int, runs: dict[str, Path], tiny_model: QModel, data: Path, tmp_path: Path
) -> None:
    whole, cut = runs[method], tmp_path / "cut"
    shutil.copytree(whole, cut)
    for path in (cut / "edgeqaf.json", cut / "adapter_model.safetensors", cut / "adapter_config.json"):
        path.unlink()
    for step in range(done + 1, 7):
        shutil.rmtree(cut / "checkpoints" / f"step-{step:06d}", ignore_errors=True)
    assert finetune(tiny_model.folder, data, cut, settings(method), resume=True)["steps"] == 6
    for name in ("adapter_model.safetensors", "log.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert checkpoint.read_manifest(cut) == checkpoint.read_manifest(whole)


def test_log_holds_every_step_and_the_held_out_losses(runs: dict[str, Path]) -> None:
    entries = [json.loads(line) for line in (runs["lowrank"] / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries if "loss" in e] == [1, 2, 3, 4, 5, 6]
    assert [e["step"] for e in entries if "eval_loss" in e] == [3, 6]


def test_gradient_accumulation_sees_the_same_rows(tiny_model: QModel, data: Path, tmp_path: Path) -> None:
    """Two micro-batches of two, against one batch of four: the same rows give nearly the same first loss."""
    finetune(tiny_model.folder, data, tmp_path / "a", settings("lowrank"))
    finetune(tiny_model.folder, data, tmp_path / "b", settings("lowrank", batch=2, accumulate=2))
    first = [json.loads((tmp_path / run / "log.jsonl").read_text().splitlines()[0])["loss"] for run in "ab"]
    assert abs(first[0] - first[1]) < 1e-4  # training quality: one loss, two orders of sums


def test_a_run_that_writes_two_slots_says_what_each_is_worth(runs: dict[str, Path]) -> None:
    both, alone = (checkpoint.read_manifest(runs[name]) for name in ("codes+scale", "codes"))
    assert both["held_out_loss_without"].keys() == {"codes", "scale"}
    assert all(loss != both["held_out_loss"] for loss in both["held_out_loss_without"].values())
    assert alone["held_out_loss_without"] == {}


def test_checkpointing_changes_no_bit(runs: dict[str, Path], tiny_model: QModel, data: Path, tmp_path: Path) -> None:
    finetune(tiny_model.folder, data, tmp_path / "run", settings("codes", checkpointing=True))
    for name in ("adapter_model.safetensors", "log.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (runs["codes"] / name).read_bytes(), name


def test_bf16_trains_and_merges(runs: dict[str, Path], tiny_model: QModel, data: Path, tmp_path: Path) -> None:
    run = finetune(tiny_model.folder, data, tmp_path / "run", settings("codes", precision="bf16"))
    assert run["folded"] != checkpoint.read_manifest(runs["codes"])["folded"]  # other activations, other codes
    merged, _ = merge(tmp_path / "run", tmp_path / "merged")
    assert {n: e["digest"] for n, e in merged.manifest["tensors"].items() if n in run["folded"]} == run["folded"]


@pytest.mark.parametrize("method", LOSSLESS)
def test_merge_is_the_training_forward(method: str, runs: dict[str, Path], tiny_model: QModel, tmp_path: Path) -> None:
    merged, movements = merge(runs[method], tmp_path / "merged")
    _, model, _, manifest = load_run(runs[method])
    counted = summary(movements)
    assert counted["moved"] + counted["scales_moved"] > 0
    assert merged.manifest["parent"] == tiny_model.root == manifest["parent"]
    moved = 0
    for name, q in merged.quantized():
        layer = model.get_submodule(name.removesuffix(".weight"))
        assert decode(q).tobytes() == layer.weight.detach().numpy().tobytes()  # type: ignore[union-attr,operator]
        base = tiny_model.tensors[name]
        assert isinstance(base, QTensor)
        assert (q.scale.tobytes() == base.scale.tobytes()) == ("scale" not in method)
        moved += int((q.codes != base.codes).sum())
    assert moved == counted["moved"]


def test_merge_refuses_a_lossy_method(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Refused, match="lora cannot be merged exactly"):
        merge(runs["lora"], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merge_refuses_another_base(runs: dict[str, Path], tiny_model: QModel, tmp_path: Path) -> None:
    tensors = {name: tiny_model.tensors[name] for name in tiny_model.tensors}
    name, q = next(tiny_model.quantized())
    codes = q.codes.copy()
    codes[0, 0] = 15 - codes[0, 0]
    other = QModel(tiny_model.config, {**tensors, name: q.replace(codes=codes)}, tiny_model.folder)
    saved = checkpoint.save(other, tmp_path / "other", kind="base", parent=None, options={})
    with pytest.raises(Refused, match=f"was trained on base {tiny_model.root[:12]}, but .* is {saved.root[:12]}"):
        merge(runs["lowrank"], tmp_path / "merged", base=tmp_path / "other")


def test_merge_catches_an_adapter_that_is_not_the_run_s(runs: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    run = tmp_path / "run"
    shutil.copytree(runs["lowrank"], run)
    tensors = load_file(run / "adapter_model.safetensors")
    name = next(n for n in sorted(tensors) if n.endswith(".b"))
    tensors[name] = tensors[name] + 1
    save_file(tensors, run / "adapter_model.safetensors")
    base = runs["lowrank"] / json.loads((run / "finetune.json").read_text())["base"]
    with pytest.raises(VerificationFailed, match=r"0\.mlp\.down_proj\.weight: folding the adapter gives other"):
        merge(run, tmp_path / "merged", base=base.resolve())


def test_inert_run_fails_loudly_and_keeps_its_log(tiny_model: QModel, data: Path, tmp_path: Path) -> None:
    inert = Settings(method="lota", options={"rank": 4, "paper": True}, **{**QUICK, "steps": 2})
    with pytest.raises(VerificationFailed, match=r"lota moved \d+ of 61440 codes \(0\.0\d\d%\)"):
        finetune(tiny_model.folder, data, tmp_path / "run", inert)
    assert (tmp_path / "run" / "log.jsonl").read_text()


def test_resume_with_another_setting_names_it(runs: dict[str, Path], tiny_model: QModel, data: Path) -> None:
    with pytest.raises(Refused, match="was started with steps = 6, not 7"):
        finetune(tiny_model.folder, data, runs["lowrank"], settings("lowrank", steps=7), resume=True)


def test_existing_run_needs_resume_or_force(runs: dict[str, Path], tiny_model: QModel, data: Path) -> None:
    with pytest.raises(UsageError, match="already exists"):
        finetune(tiny_model.folder, data, runs["lowrank"], settings("lowrank"))


def test_unfinished_run_cannot_be_merged(runs: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["lowrank"], run)
    (run / "edgeqaf.json").unlink()
    with pytest.raises(Refused, match="is not finished"):
        merge(run, tmp_path / "merged")


def test_tuning_lowers_the_loss(tiny_model: QModel, data: Path, tmp_path: Path) -> None:
    run = finetune(tiny_model.folder, data, tmp_path / "run", settings("lowrank", steps=40))
    losses = [json.loads(line).get("loss") for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    first, last = [loss for loss in losses if loss is not None][:4], [loss for loss in losses if loss is not None][-4:]
    assert sum(last) < 0.7 * sum(first)  # training quality
    assert run["held_out_loss"] is not None
    assert torch.isfinite(torch.tensor(run["held_out_loss"]))
