"""What merge holds in memory, what of an adapter file it refuses, and that nothing is visible before every check."""

import gc
import json
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgeqaf import checkpoint, witness
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import Refused, VerificationFailed
from edgeqaf.finetune import Settings, finetune
from edgeqaf.merge import Folded, merge, open_lossless
from edgeqaf.modeling import build
from edgeqaf.nn import QLinear, qlinears, to_numpy
from edgeqaf.qtensor import QTensor
from edgeqaf.run import load_run
from edgeqaf.tokenizer import Tokenizer

ADAPTER = "adapter_model.safetensors"
METHODS: dict[str, dict[str, Any]] = {
    "codes": {"lr": 0.5, "groups": 2}, "lowrank+scale": {"lr": 0.5}, "lota": {"rank": 4},
    "lowrank": {"lr": 0.5, "residual": "FLOATS"},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny_model: QModel, tiny_float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"prompt": f"Say number {i}.", "completion": f"number: {i}"} for i in range(12)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    for method, options in METHODS.items():
        given = {k: str(tiny_float_model) if v == "FLOATS" else v for k, v in options.items()}
        settings = Settings(method=method, options=given, steps=4, batch=4, max_length=48, threads=1)
        finetune(tiny_model.folder, folder / "train.jsonl", folder / method, settings)
    return {method: folder / method for method in METHODS}


@pytest.fixture
def copied(runs: dict[str, Path], tiny_model: QModel, tmp_path: Path) -> Path:
    run = tmp_path / "place" / "run"
    shutil.copytree(runs["lowrank+scale"], run)
    settings = json.loads((run / "finetune.json").read_text("utf-8"))
    (run / "finetune.json").write_text(json.dumps(settings | {"base": os.path.relpath(tiny_model.folder, run)}))
    return run


@pytest.mark.parametrize("method", METHODS)
def test_each_tensor_folds_alone_to_what_it_folds_to_in_the_whole_model(method: str, runs: dict[str, Path]) -> None:
    _, model, _, _ = load_run(runs[method])
    folded = Folded(open_lossless(runs[method]))
    layers = qlinears(model)
    assert layers
    for name, layer in layers.items():
        alone, whole = folded[name], to_numpy(layer.folded())
        assert isinstance(alone, QTensor)
        for part in ("codes", "scale"):
            assert getattr(alone, part).tobytes() == getattr(whole, part).tobytes(), (name, part)
    assert folded.movements.keys() == layers.keys()


@pytest.mark.parametrize("method", METHODS)
def test_the_manifests_witness_is_that_of_the_whole_model(method: str, runs: dict[str, Path], tmp_path: Path) -> None:
    merged, _ = merge(runs[method], tmp_path / "merged")
    tokens = witness.prompts(Tokenizer(merged.folder))
    trained, stored = load_run(runs[method])[1], build(merged.config, merged.tensors)
    for model in (trained, stored):
        recorded = witness.record(tokens, [witness.logits(model, ids) for ids in tokens])
        assert merged.manifest["witness"] == recorded


def test_no_two_decoder_layers_are_ever_in_memory(
    runs: dict[str, Path], tiny_model: QModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[QLinear] = weakref.WeakSet()
    most = 0
    made = QLinear.__init__
    count = int(tiny_model.config["num_hidden_layers"])
    of_a_layer = sum(1 for _ in tiny_model.quantized()) / count

    def counted(self: QLinear, *arguments: Any) -> None:
        nonlocal most
        made(self, *arguments)
        alive.add(self)
        if len(alive) > of_a_layer:  # or garbage that nothing holds
            gc.collect()
        most = max(most, len(alive))

    monkeypatch.setattr(QLinear, "__init__", counted)
    merge(runs["codes"], tmp_path / "merged")
    assert count > 1
    assert most == of_a_layer


def grown(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.9.mlp.up_proj.adapter.x"] = torch.zeros(1)


def lacking(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.1.mlp.up_proj.adapter.lowrank.a"]


def short(tensors: dict[str, Tensor]) -> None:
    name = "model.layers.1.mlp.up_proj.adapter.lowrank.a"
    tensors[name] = tensors[name][:, 1:].contiguous()


def narrow(tensors: dict[str, Tensor]) -> None:
    name = "model.layers.1.mlp.up_proj.adapter.lowrank.a"
    tensors[name] = tensors[name].bfloat16()


@pytest.mark.parametrize("damage", [grown, lacking, short, narrow])
def test_an_adapter_file_that_is_not_the_bases_is_refused_by_name(
    damage: Callable[[dict[str, Tensor]], None], copied: Path, tmp_path: Path
) -> None:
    tensors = load_file(copied / ADAPTER)
    damage(tensors)
    changed = load_file(copied / ADAPTER)
    name = next(n for n in sorted(tensors.keys() | changed.keys())
                if n not in tensors or n not in changed or tensors[n].dtype != changed[n].dtype
                or tensors[n].shape != changed[n].shape)  # fmt: skip
    save_file(tensors, copied / ADAPTER)
    for way in (lambda: merge(copied, tmp_path / "merged"), lambda: open_lossless(copied), lambda: load_run(copied)):
        with pytest.raises(Refused, match=rf"{ADAPTER}: 1 tensors do not fit the model, first {name}$"):
            way()
    assert os.listdir(tmp_path) == ["place"]


def test_nothing_is_visible_until_the_logits_were_compared(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    compute = witness.layerwise

    def wrong(*arguments: Any, **more: Any) -> Any:
        seen.append([name for name in os.listdir(tmp_path) if not name.endswith(".part")])
        logits = compute(*arguments, **more)
        logits[-1][-1, -1] = (
            np.nextafter(logits[-1][-1, -1], np.float32(np.inf)) if len(seen) == 2 else logits[-1][-1, -1]
        )
        return logits

    monkeypatch.setattr(witness, "layerwise", wrong)
    with pytest.raises(VerificationFailed, match="the logits of the merged model differ"):
        merge(runs["codes"], tmp_path / "merged")
    assert seen == [[], []]
    assert os.listdir(tmp_path) == []


def test_a_manifest_that_folds_another_layer_is_refused(copied: Path, tmp_path: Path) -> None:
    manifest = json.loads((copied / "edgeqaf.json").read_text("utf-8"))
    name = sorted(manifest["folded"])[0]
    del manifest["folded"][name]
    (copied / "edgeqaf.json").write_text(json.dumps(manifest))
    with pytest.raises(VerificationFailed, match=f"^{name}: folding the adapter gives other integers"):
        merge(copied, tmp_path / "merged")


def test_what_is_called_for_late_is_given_what_was_written(tiny_model: QModel, tmp_path: Path) -> None:
    def late(written: Any) -> dict[str, Any]:
        return {"late": {name: list(written[name].shape) for name in written}}

    saved = checkpoint.save(tiny_model, tmp_path / "out", kind="base", parent=None, options={}, extra=late)
    assert saved.manifest["late"] == {name: list(shape) for name, (_, shape) in tiny_model.outline().items()}
