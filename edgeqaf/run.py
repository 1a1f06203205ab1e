"""A run folder, opened again: the model exactly as it was at the end of training."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeqaf import checkpoint
from edgeqaf.checkpoint import MANIFEST
from edgeqaf.digest import tensor_digest
from edgeqaf.errors import Refused
from edgeqaf.jsonfile import read_json
from edgeqaf.method import Tuning, method_of
from edgeqaf.modeling import build
from edgeqaf.nn import qlinears, to_numpy
from edgeqaf.resume import ADAPTER, load_parameters

SETTINGS, LOG, CONFIG, CHECKPOINTS = "finetune.json", "log.jsonl", "adapter_config.json", "checkpoints"


def load_run(run: Path, base: Path | None = None) -> tuple[checkpoint.QModel, nn.Module, Tuning, dict[str, Any]]:
    """The base folder, the model as it was at the end of training, its method, and the run's manifest.

    Raises Refused for an unfinished run or a base whose root is not the one it was trained on.
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
    model = method.attach(build(model_folder.config, model_folder.tensors), options, manifest["seed"])
    load_parameters(model, run / ADAPTER, method.stored_name)
    return model_folder, model, method, manifest


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
