"""A run made ready: its inputs read and checked, the data divided, the method attached to the model."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeqaf import checkpoint, ranks
from edgeqaf.data.batches import Collator, PackedCollator, packs, require_apart
from edgeqaf.data.reading import digest, read_rows
from edgeqaf.data.split import Split, split
from edgeqaf.errors import Refused
from edgeqaf.guards import blame
from edgeqaf.method import Options, Tuning, method_of
from edgeqaf.modeling import build
from edgeqaf.tokenizer import Tokenizer


@dataclass(frozen=True)
class Settings:
    """One run's settings; all that decides its bits, beside the base and the data.

    batch: rows per micro-batch, or, with packing, sequences of several rows; accumulate: micro-batches
    per step, which several ranks share (`edgeqaf.ranks.shared`); max_length: tokens a row may have;
    holdout: share of rows (at most 256) kept for the held-out loss when no file is given; eval_every,
    save_every: in optimizer steps; device: where it trains; precision: float32, or bf16 for the activations and
    the matrix products (autocast); checkpointing: activations are computed again in backward instead of
    kept; options: the method's own.
    """

    method: str = "codes"
    steps: int = 300
    batch: int = 16
    accumulate: int = 1
    max_length: int = 256
    seed: int = 0
    holdout: float = 0.05
    eval_every: int = 100
    save_every: int = 100
    threads: int = 0
    device: str = "cpu"
    precision: str = "float32"
    checkpointing: bool = False
    columns: Sequence[str] = ()
    packing: bool = False
    drop_duplicates: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """All that a run is made of, once its inputs are read and checked."""

    out: Path
    settings: Settings
    method: Tuning
    options: Options
    model: nn.Module
    rows: Split
    pad: int
    blame: Callable[[Sequence[Any]], str]
    record: dict[str, Any]


def prepare(base: Path, data: Path | str, out: Path, settings: Settings, eval_data: Path | str | None) -> Prepared:
    """Read and check the inputs, and attach the method to the model."""
    model_folder = checkpoint.load(base)
    method, options = method_of(settings.method, settings.options)
    ranks.shared(settings.batch, settings.accumulate)
    torch.set_num_threads(settings.threads or ranks.threads())
    tokenizer = Tokenizer(base)
    rows, digests = read(data, eval_data, settings, tokenizer)
    record = _record(base, model_folder.root, digests, settings, out)
    checkpoint.verify(model_folder)
    model = method.attach(build(model_folder.config, model_folder.tensors), options, settings.seed)
    if settings.packing:
        require_apart(model, model_folder.config["model_type"])

    def which(items: Sequence[Any]) -> str:
        examples = [example for item in items for example in (item if isinstance(item, list) else [item])]
        return blame(examples, read_rows(data, settings.columns), tokenizer, settings.max_length)

    return Prepared(out, settings, method, options, model, rows, tokenizer.pad, which, record)


def read(
    data: Path | str, eval_data: Path | str | None, settings: Settings, tokenizer: Tokenizer
) -> tuple[Split, dict[str, str | None]]:
    """The data of a run, divided; and the digests of ``data`` and ``eval_data``."""
    rows = read_rows(data, settings.columns)
    held_out = None if eval_data is None else read_rows(eval_data, settings.columns)
    digests = {
        "data": digest(data, rows),
        "eval_data": None if eval_data is None or held_out is None else digest(eval_data, held_out),
    }
    divided = split(
        rows, held_out, tokenizer, settings.max_length, share=settings.holdout, seed=settings.seed,
        drop_duplicates=settings.drop_duplicates,
    )  # fmt: skip
    return divided, digests


def _record(base: Path, root: str, digests: dict[str, str | None], settings: Settings, out: Path) -> dict[str, Any]:
    return {
        **asdict(settings), "columns": list(settings.columns), "options": dict(settings.options),
        "base": os.path.relpath(base, out), "base_root": root, "ranks": ranks.count(), **digests,
    }  # fmt: skip


def require_alike(record: dict[str, Any]) -> None:
    """Refuse ranks that were given different settings, bases or data."""
    found = ranks.gathered(record)
    for rank, theirs in enumerate(found):
        for key, value in found[0].items():
            if key != "base" and theirs.get(key) != value:
                refusal = Refused(
                    f"rank 0 has {key} = {value!r}, rank {rank} has {theirs.get(key)!r}",
                    "give every rank the same command, base and data",
                )
                raise ranks.echoed(refusal, ranks.first())


def batched(rows: Split, settings: Settings, pad: int) -> tuple[list[Any], list[Any], Any]:
    """(training items, held-out items, collator): examples padded, or packed; held-out ones never share a sequence."""
    if settings.packing:
        return packs(rows.train, settings.max_length), [[e] for e in rows.held_out], PackedCollator(pad)
    return rows.train, rows.held_out, Collator(pad)
