"""Merge: ``q := fold(q, delta)`` over a model, and the proof that nothing was lost.

Four checks, each on bits, before anything is written:

1. the base is the one the run was trained on (Merkle root);
2. the folded tensors have the digests that training recorded at its last step;
3. the numpy `decode` of the merged integers equals the weights of the training forward;
4. the logits of the merged model equal those of the model with its adapter still attached.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeqaf import checkpoint, witness
from edgeqaf.checkpoint import QModel
from edgeqaf.console import progress
from edgeqaf.digest import Tensor, tensor_digest
from edgeqaf.errors import Refused, VerificationFailed
from edgeqaf.modeling import build
from edgeqaf.movement import Movement, layer_movements, total
from edgeqaf.nn import QLinear, qlinears, to_numpy
from edgeqaf.qtensor import QTensor, check, decode
from edgeqaf.report import compare_bits, first_difference
from edgeqaf.run import load_run
from edgeqaf.tokenizer import Tokenizer


def merge(run: Path, out: Path, *, base: Path | None = None, force: bool = False) -> tuple[QModel, dict[str, Movement]]:
    """Write the merged model folder ``out``; return it and how far each layer moved.

    Raises Refused for a lossy method, an unfinished run or another base; VerificationFailed when one
    of the four checks finds a differing bit.
    """
    model_folder, model, manifest = open_lossless(run, base)
    tensors: dict[str, Tensor] = {n: model_folder.tensors[n] for n in model_folder.tensors}
    layers = qlinears(model)
    with progress("merge", len(layers)) as advance:
        for done, (name, layer) in enumerate(layers.items(), 1):
            tensors[name] = _fold(name, layer, manifest["folded"][name])
            advance(done)
    tokens = witness.prompts(Tokenizer(model_folder.folder))
    before = witness.record(model, tokens)
    _require_equal_logits(before, witness.record(build(model_folder.config, tensors), tokens))
    movements = layer_movements(model)
    merged = checkpoint.save(
        QModel(model_folder.config, tensors, model_folder.folder), out, kind="merged", parent=model_folder.root,
        options={"method": manifest["method"]}, force=force,
        extra={"witness": before, "layers": {name: asdict(m) for name, m in movements.items()}},
    )  # fmt: skip
    return merged, movements


def open_lossless(run: Path, base: Path | None = None) -> tuple[QModel, nn.Module, dict[str, Any]]:
    """Base, model and manifest of a run that can be merged; raises Refused for one that cannot."""
    model_folder, model, method, manifest = load_run(run, base)
    if not method.lossless:
        raise Refused(
            f"{run}: {manifest['method']} cannot be merged exactly: its delta is no change of integers",
            "use a lossless method (codes, lowrank), or measure the loss: edgeqaf eval RUN --requantize",
        )
    return model_folder, model, manifest


@torch.no_grad()
def _fold(name: str, layer: QLinear, digest: str) -> QTensor:
    """Fold one layer and check it against training's digest and training's weights."""
    folded = check(to_numpy(layer.folded()), name)
    if tensor_digest(name, folded) != digest:
        raise VerificationFailed(
            f"{name}: folding the adapter gives other integers than training ended with",
            "the adapter file does not belong to this run, or this machine computes differently; train again here",
        )
    expected: Any = layer.weight.numpy()
    found = decode(folded)
    different = compare_bits(expected, found) | (np.signbit(expected) != np.signbit(found))
    if different.any():
        raise VerificationFailed(
            f"{int(different.sum())} weights differ; {first_difference(name, expected, found, different)}",
            "this is a defect in edgeqaf; please report it with the run folder",
        )
    return folded


def _require_equal_logits(before: dict[str, Any], after: dict[str, Any]) -> None:
    if before["logits"] != after["logits"]:
        raise VerificationFailed(
            "the logits of the merged model differ from those before the merge, though every weight is equal",
            "this is a defect in edgeqaf; please report it with the run folder",
        )


def summary(movements: dict[str, Movement]) -> dict[str, Any]:
    """The totals a person wants to see, and the tensors that did not move at all."""
    return asdict(total(movements)) | {"untouched": [n for n, m in movements.items() if m.share == 0]}
