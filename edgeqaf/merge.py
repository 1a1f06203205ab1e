"""Merge: ``q := fold(q, delta)`` over a model, and the proof that nothing was lost.

Four checks, each on bits, before anything is visible:

1. the base is the one the run was trained on (Merkle root);
2. the folded tensors have the digests that training recorded at its last step;
3. the numpy `decode` of the merged integers equals the weights of the training forward;
4. the logits of the merged model, as it was written, equal those of the base with its adapters attached.

One tensor is in memory at a time, for the logits one decoder layer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeqaf import checkpoint, witness
from edgeqaf.checkpoint import QModel
from edgeqaf.console import progress
from edgeqaf.digest import Tensor, tensor_digest
from edgeqaf.errors import Refused, VerificationFailed
from edgeqaf.memory import give_back
from edgeqaf.movement import Movement, layer_movements, total
from edgeqaf.nn import QLinear, qlinears, to_numpy
from edgeqaf.packed import Packed, weights
from edgeqaf.qtensor import QTensor, check, decode
from edgeqaf.report import compare_bits, first_difference
from edgeqaf.run import Run, open_run
from edgeqaf.runs import Rows, rows_in, rows_of
from edgeqaf.tokenizer import Tokenizer


def merge(run: Path, out: Path, *, base: Path | None = None, force: bool = False) -> tuple[QModel, dict[str, Movement]]:
    """Write the merged model folder ``out``; return it and how far each layer moved.

    Raises Refused for a lossy method, an unfinished run or another base; VerificationFailed when one
    of the four checks finds a differing bit.
    """
    opened = open_lossless(run, base)
    folded, config = Folded(opened), opened.base.config

    def proof(written: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the manifest says of the merge, once the logits were found equal."""
        tokens = witness.prompts(Tokenizer(opened.base.folder))
        layers = config["num_hidden_layers"]
        with progress("logits before", layers) as advance:
            before = witness.record(
                tokens, witness.layerwise(config, opened.base.tensors, tokens, opened.adapt, advance=advance)
            )
        with progress("logits after", layers) as advance:
            after = witness.record(tokens, witness.layerwise(config, written, tokens, advance=advance))
        _require_equal_logits(before, after)
        give_back()
        return {"witness": before, "layers": {name: asdict(m) for name, m in folded.movements.items()}}

    merged = checkpoint.save(
        QModel(config, folded, opened.base.folder), out, kind="merged", parent=opened.base.root,
        options={"method": opened.manifest["method"]}, force=force, extra=proof, title="merge",
    )  # fmt: skip
    return merged, folded.movements


def open_lossless(run: Path, base: Path | None = None) -> Run:
    """A run that can be merged, its base verified and its adapter file checked; raises Refused for one that cannot."""
    opened = open_run(run, base)
    if not opened.method.lossless:
        raise Refused(
            f"{run}: {opened.manifest['method']} cannot be merged exactly: its delta is no change of integers",
            "use a lossless method (codes, lowrank), or measure the loss: edgeqaf eval RUN --requantize",
        )
    opened.adapters  # noqa: B018  checked as it is opened
    return opened


class Folded(Mapping[str, Tensor]):
    """The tensors of a run's base with its adapters folded in, each folded and checked when it is asked for.

    movements: how far those have moved that were asked for, by name.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._layers = run, frozenset(run.layers)
        self.movements: dict[str, Movement] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._run.base.tensors)

    def __len__(self) -> int:
        return len(self._run.base.tensors)

    def outline(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """`edgeqaf.checkpoint.QModel.outline`: the base's, as folding keeps grids and shapes."""
        return self._run.base.outline()

    def __contains__(self, name: object) -> bool:
        return name in self._run.base.tensors  # the mixin's would read the tensor

    def rows(self, name: str) -> Rows:
        """`edgeqaf.runs.ByRows`; what is folded, is so as a whole."""
        return rows_in(self[name], name) if name in self._layers else rows_of(self._run.base.tensors, name)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._layers:
            return self._run.base.tensors[name]
        model = self._run.alone(name)
        self._run.adapt(model)
        self.movements |= layer_movements(model)
        return _fold(name, qlinears(model)[name], self._run.manifest["folded"].get(name))


@torch.no_grad()
def _fold(name: str, layer: QLinear, digest: str | None) -> QTensor:
    """Fold one layer and check it against training's digest and training's weights."""
    folded = check(to_numpy(layer.folded()), name)
    if tensor_digest(name, folded) != digest:
        raise VerificationFailed(
            f"{name}: folding the adapter gives other integers than training ended with",
            "the adapter file does not belong to this run, or this machine computes differently; train again here",
        )
    _require_equal_weights(name, layer.now, folded)
    return folded


def _require_equal_weights(name: str, now: Packed, folded: QTensor) -> None:
    """Hold the weights of the forward pass against those that the stored integers mean, a tile of rows at a time."""
    count, first = 0, None
    for rows in now.tiles():
        expected: Any = weights(now, rows, torch.float32).numpy()
        zero = None if folded.zero is None else folded.zero[rows]
        found = decode(QTensor(folded.grid, folded.codes[rows], folded.scale[rows], zero))
        different = compare_bits(expected, found) | (np.signbit(expected) != np.signbit(found))
        count += int(different.sum())
        first = first or first_difference(f"{name}, rows from {rows.start}", expected, found, different)
    if count:
        raise VerificationFailed(
            f"{count} weights differ; {first}",
            "this is a defect in edgeqaf; please report it with the run folder",
        )


def _require_equal_logits(before: dict[str, Any], after: dict[str, Any]) -> None:
    if before["logits"] != after["logits"]:
        raise VerificationFailed(
            "the logits of the merged model differ from those before the merge, though every weight is equal",
            "this is a defect in edgeqaf; please report it with the run folder",
        )


def summary(movements: dict[str, Movement]) -> dict[str, Any]:
    """The totals a person wants to see, and the tensors that did not move at all."""
    return asdict(total(movements)) | {"untouched": [n for n, m in movements.items() if m.share == 0]}
