"""A run folder, opened again: the model exactly as it was at the end of training, or one layer of it at a time."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeqaf import checkpoint
from edgeqaf.checkpoint import MANIFEST, QModel
from edgeqaf.digest import FLOAT32, tensor_digest
from edgeqaf.errors import Refused
from edgeqaf.jsonfile import read_json
from edgeqaf.method import Options, Tuning, adapter_state, method_of
from edgeqaf.modeling import build
from edgeqaf.nn import QLinear, qlinears, to_numpy
from edgeqaf.qtensor import QTensor
from edgeqaf.resume import ADAPTER, Kind, described, fill, load_parameters, open_adapter, require_fit
from edgeqaf.source import is_linear
from edgeqaf.tensorfile import TensorFile

SETTINGS, LOG, CONFIG, CHECKPOINTS = "finetune.json", "log.jsonl", "adapter_config.json", "checkpoints"


@dataclass(frozen=True)
class Run:
    """A finished run, opened: its base is verified, and no tensor of it in memory."""

    folder: Path
    base: QModel
    method: Tuning
    options: Options
    manifest: dict[str, Any]

    def attach(self, model: nn.Module) -> nn.Module:
        """The method on every quantized layer that is in ``model``, as training begins; its adapters are not read."""
        return self.method.attach(model, self.options, self.manifest["seed"])

    @cached_property
    def adapters(self) -> TensorFile:
        """The adapter file of a lossless method; Refused unless it holds exactly what this base's layers train.

        One layer of each grid and shape is read to know.
        """
        outline = self.base.outline()
        kinds: dict[Any, dict[str, Kind]] = {}
        wanted: dict[str, Kind] = {}
        for name in self.layers:
            path, like = name.removesuffix("weight"), outline[name]
            if like not in kinds:
                state = adapter_state(self.attach(self.alone(name)))
                kinds[like] = {key.removeprefix(path): described(tensor) for key, tensor in state.items()}
            wanted |= {self.method.stored_name(path + key): kind for key, kind in kinds[like].items()}
        stored = open_adapter(self.folder / ADAPTER)
        require_fit(stored, wanted)
        return stored

    def adapt(self, model: nn.Module) -> None:
        """Give every quantized layer that is in ``model`` its adapter as it was at the end of training."""
        fill(self.attach(model), self.adapters, self.method.stored_name)

    @cached_property
    def layers(self) -> list[str]:
        """The tensors that have adapters, sorted."""
        family = self.base.config["model_type"]
        return sorted(n for n, (grid, _) in self.base.outline().items() if grid != FLOAT32 and is_linear(family, n))

    def alone(self, name: str) -> nn.Module:
        """A model of one layer of the base, under its name."""
        model = inner = nn.Module()
        *parents, leaf = name.removesuffix(".weight").split(".")
        for part in parents:
            inner.add_module(part, nn.Module())
            inner = inner.get_submodule(part)
        tensor = self.base.tensors[name]
        assert isinstance(tensor, QTensor)
        inner.add_module(leaf, QLinear(tensor))
        return model


def open_run(run: Path, base: Path | None = None) -> Run:
    """A run folder, its base found and verified.

    Raises Refused for an unfinished run, for a base that is damaged or whose root is not the one it was trained on.
    """
    if not (run / MANIFEST).is_file() and (run / SETTINGS).is_file():
        raise Refused(f"{run} is not finished", "run the same finetune command with --resume")
    manifest = checkpoint.read_manifest(run)
    if manifest["kind"] != "run":
        raise Refused(f"{run} is a {manifest['kind']} folder, not a run", "pass a folder made by finetune")
    _require_types(manifest, run)
    folder = base or _recorded_base(run)
    model_folder = checkpoint.load(folder)
    if model_folder.root != manifest["parent"]:
        raise Refused(
            f"{run} was trained on base {manifest['parent'][:12]}, but {folder} is {model_folder.root[:12]}",
            "pass the base it was trained on: --base FOLDER",
        )
    checkpoint.verify(model_folder)
    method, options = method_of(manifest["method"], manifest["options"])
    return Run(run, model_folder, method, options, manifest)


def load_run(run: Path, base: Path | None = None) -> tuple[QModel, nn.Module, Tuning, dict[str, Any]]:
    """The base folder, the model as it was at the end of training, its method, and the run's manifest.

    Raises what `open_run` raises, and Refused for an adapter file that is not the model's.
    """
    opened = open_run(run, base)
    model = opened.attach(build(opened.base.config, opened.base.tensors))
    load_parameters(model, run / ADAPTER, opened.method.stored_name)
    return opened.base, model, opened.method, opened.manifest


def _recorded_base(run: Path) -> Path:
    """Where finetune found the base, as a path from the run folder."""
    recorded = read_json(run / SETTINGS).get("base")
    folder = (run / str(recorded)).resolve()
    if not isinstance(recorded, str) or not (folder / MANIFEST).is_file():
        raise Refused(f"{run}: its base {folder} is not there", "name the folder it has moved to: --base FOLDER")
    return folder


def _require_types(manifest: dict[str, Any], run: Path) -> None:
    """Refuse a manifest without what is read from it."""
    types = {"parent": str, "method": str, "options": dict, "seed": int, "folded": dict}
    for key, kind in types.items():
        if not isinstance(manifest.get(key), kind):
            raise Refused(f"{run / MANIFEST}: {key!r} is {manifest.get(key)!r:.40}", "the file is corrupt; train again")


@torch.no_grad()
def folded_digests(model: nn.Module) -> dict[str, str]:
    """Canonical digest of every quantized layer with its adapter folded in."""
    return {name: tensor_digest(name, to_numpy(layer.folded())) for name, layer in qlinears(model).items()}
