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
from edgeqaf.trainer import ADAPTER, load_parameters

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
    folder = base or (run / read_json(run / SETTINGS)["base"]).resolve()
    model_folder = checkpoint.load(folder)
    if model_folder.root != manifest["parent"]:
        raise Refused(
            f"{run} was trained on base {manifest['parent'][:12]}, but {folder} is {model_folder.root[:12]}",
            "pass the base it was trained on: --base FOLDER",
        )
    checkpoint.verify(model_folder)
    adapter = read_json(run / CONFIG)
    method, options = method_of(adapter["method"], adapter["options"])
    model = method.attach(build(model_folder.config, model_folder.tensors), options, adapter["seed"])
    load_parameters(model, run / ADAPTER)
    return model_folder, model, method, manifest


@torch.no_grad()
def folded_digests(model: nn.Module) -> dict[str, str]:
    """Canonical digest of every quantized layer with its adapter folded in."""
    return {name: tensor_digest(name, to_numpy(layer.folded())) for name, layer in qlinears(model).items()}
