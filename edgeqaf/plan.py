"""What a run would do, and what it would take of memory, disk and time: `edgeqaf finetune --dry-run`.

Rows, tokens, steps and parameters are counted. Memory is the storage of the model as it was built,
and an estimate of what a step adds to it, term by term. Time is that of a few real steps on this
machine, times the steps to go.
"""

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from edgeqaf import checkpoint
from edgeqaf.data.split import Split
from edgeqaf.method import Course, Options, Tuning, adapter_state, method_of, trainable
from edgeqaf.modeling import build
from edgeqaf.nn import qlinears
from edgeqaf.packed import TILE
from edgeqaf.prepare import Settings, batched, read
from edgeqaf.tokenizer import Tokenizer

FLOAT = 4  # bytes
PATIENCE, TRIES = 3.0, 3  # seconds, and micro-batches, after which timing stops


def plan(base: Path, data: Path | str, settings: Settings, eval_data: Path | str | None = None) -> dict[str, Any]:
    """Counts; ``memory``, the terms of ``memory_bytes``; ``seconds`` and ``seconds_per_step``.

    The two are None, and nothing is run, where the estimate is beyond the memory that is free.
    """
    started = psutil.Process().memory_info().rss
    model_folder = checkpoint.load(base)
    method, options = method_of(settings.method, settings.options)
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    tokenizer = Tokenizer(base)
    rows, _ = read(data, eval_data, settings, tokenizer)
    model = method.attach(build(model_folder.config, model_folder.tensors), options, settings.seed)
    memory = {"process": started} | storage(model) | step(model, settings.batch, _longest(rows, settings))
    free = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    timed: Mapping[str, Any] = {"seconds": None, "seconds_per_step": None}
    if sum(memory.values()) <= free:
        timed, memory["optimizer"] = _timed(model, method, options, settings, rows, tokenizer.pad)
    items = len(batched(rows, settings, tokenizer.pad)[0])
    state = adapter_state(model)
    return {
        "rows": len(rows.train), "rows_held_out": len(rows.held_out), "rows_too_long": rows.counts.too_long,
        "rows_duplicate": rows.counts.duplicates, "rows_leaked": rows.counts.leaked,
        "longest_row": rows.counts.longest, "tokens": sum(len(e.ids) for e in rows.train),
        "sequences": items, "steps": settings.steps,
        "epochs": settings.steps * settings.batch * settings.accumulate / items,
        "trained_parameters": sum(t.numel() for t in state.values()),
        "checkpoint_bytes": tensor_bytes(state.values()) + memory["optimizer"],
        "memory": memory, "memory_bytes": sum(memory.values()), **timed,
    }  # fmt: skip


def storage(model: nn.Module) -> dict[str, int]:
    """Bytes that the built model holds, by what they are.

    base: packed integers and their scales. folded: what of them the adapters replace. floats: embeddings, norms, a
    head that is not quantized. adapter: what is trained. gradients: one for every parameter that autograd trains.
    optimizer: two moments of each, as AdamW keeps.
    """
    layers = qlinears(model).values()
    state = adapter_state(model)
    base = {t.data_ptr(): t for layer in layers for t in _parts(layer.base)}
    folded = {t.data_ptr(): t for layer in layers for t in _parts(layer.now) if t.data_ptr() not in base}
    counted = base.keys() | {t.data_ptr() for t in state.values()}
    others = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()] if t.data_ptr() not in counted}
    gradients = tensor_bytes(trainable(model).values())
    return {
        "base": tensor_bytes(base.values()), "folded": tensor_bytes(folded.values()),
        "floats": tensor_bytes(others.values()), "adapter": tensor_bytes(state.values()),
        "gradients": gradients, "optimizer": 2 * gradients,
    }  # fmt: skip


def step(model: Any, batch: int, length: int) -> dict[str, int]:
    """Bytes that one micro-batch of ``batch`` sequences of ``length`` tokens adds; an estimate.

    activations: what backward needs of each layer: the residual and its norm before attention and before the MLP;
    queries, keys, values and what attention makes of them; the MLP's gate, its activation, up and their product.
    logits: with their gradient. decoded: a tile of weights, its gradient, and one of either in passing.
    """
    config = model.config
    hidden, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    attention, keys = head * config.num_attention_heads, head * config.num_key_value_heads
    layer = 4 * hidden + 3 * attention + 2 * keys + 4 * inner
    widest = max((x.in_features * x.out_features for x in qlinears(model).values()), default=0)
    tokens = batch * length
    return {
        "activations": FLOAT * tokens * layer * config.num_hidden_layers,
        "logits": FLOAT * tokens * config.vocab_size * 2,
        "decoded": FLOAT * min(TILE, widest) * 4,
    }


def _timed(model: nn.Module, method: Tuning, options: Options, settings: Settings, rows: Split,
           pad: int) -> tuple[dict[str, Any], int]:  # fmt: skip
    """Seconds of the run and of a step, and the bytes that its optimizer keeps; from a few real micro-batches."""
    train, held_out, collate = batched(rows, settings, pad)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    optimizer, _ = method.optimizer(model, options, Course(settings.steps, settings.accumulate))
    model.train()
    model(**collate([train[order[0]]])).loss.backward()  # once, for what is only done once
    passes: list[float] = []
    updates: list[float] = []
    for i in range(TRIES):
        batch = collate([train[order[(i * settings.batch + j) % len(train)]] for j in range(settings.batch)])
        passes.append(_seconds(lambda batch=batch: model(**batch).loss.backward()))
        updates.append(_seconds(optimizer.step))
        optimizer.zero_grad()
        if sum(passes) > PATIENCE:
            break
    per_step = settings.accumulate * sum(passes) / len(passes) + sum(updates) / len(updates)
    evaluations = 0.0
    if held_out:
        some = held_out[: settings.batch]
        batches = math.ceil(len(held_out) / settings.batch) * (math.ceil(settings.steps / settings.eval_every))
        model.eval()
        with torch.no_grad():
            evaluations = batches * _seconds(lambda: model(**collate(some)))
    return {"seconds_per_step": per_step, "seconds": settings.steps * per_step + evaluations}, moment_bytes(optimizer)


def moment_bytes(optimizer: Any) -> int:
    """What an optimizer keeps for its parameters; of each part, where several act as one."""
    states = [state for part in getattr(optimizer, "optimizers", [optimizer]) for state in part.state.values()]
    return tensor_bytes(value for state in states for value in state.values() if isinstance(value, Tensor))


def _seconds(action: Any) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def _longest(rows: Split, settings: Settings) -> int:
    return settings.max_length if settings.packing else max(len(e.ids) for e in [*rows.train, *rows.held_out])


def _parts(packed: Any) -> list[Tensor]:
    """Tensors of an `edgeqaf.packed.Packed`."""
    return [t for t in (packed.codes, packed.scale, packed.zero) if t is not None]


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Their storage."""
    return sum(t.numel() * t.element_size() for t in tensors)
