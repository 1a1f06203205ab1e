"""The training loop: transformers' Trainer, told how ranks act as one and what a checkpoint of ours holds.

What differs from the stock Trainer: rows come in an order that does not depend on the number of ranks
(`edgeqaf.order`); losses and gradients are sums over all ranks, added up in their order; a loss or
gradient that is no number stops the run before the step is taken; and a checkpoint holds the trained
parameters only (the base is on disk already), appears whole or not at all, and is refused where ranks
differ by a bit.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from edgeqaf import ranks
from edgeqaf.data.examples import IGNORED
from edgeqaf.errors import Diverged, OutOfResources
from edgeqaf.guards import require_finite_gradients
from edgeqaf.method import trainable
from edgeqaf.nn import qlinears
from edgeqaf.order import Order
from edgeqaf.resume import (
    ADAPTER,
    OPTIMIZER,
    RANDOM,
    SCHEDULER,
    STATE,
    checkpoints,
    load_parameters,
    load_torch,
    parameters,
    random_state,
    save_torch,
    set_random_state,
)  # fmt: skip
from edgeqaf.sharding import assembled, deal_state, is_sharded, whole
from edgeqaf.staging import staged

KEPT = 2  # checkpoints kept on disk


class GridTrainer(Trainer):  # type: ignore[misc]
    """Trainer whose checkpoints live in ``folder`` as ``step-000100/``.

    order: of the training items; held_out: micro-batches for the held-out loss; blame: says of training items
    which rows of the data they are.
    """

    control: Any

    def __init__(self, folder: Path, order: Order, held_out: Sequence[Any], blame: Callable[[Sequence[Any]], str],
                 **kwargs: Any) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.folder, self.order, self.held_out, self.blame = folder, order, held_out, blame
        self._losses: list[Tensor] = []  # of this step's micro-batches, each over all ranks

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This rank's micro-batches through the whole run, as one epoch."""
        return DataLoader(self.train_dataset, batch_sampler=self.order, collate_fn=self._collate)

    def _collate(self, items: list[Any]) -> dict[str, Any]:
        """A micro-batch; an empty one is some row without labels, whose loss and gradients are zero."""
        batch: dict[str, Any] = self.data_collator(items or [self.train_dataset[0]])
        return batch if items else batch | {"labels": torch.full_like(batch["labels"], IGNORED)}

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """Distribute the model ourselves: accelerate would let the backend choose the order of sums."""
        if ranks.count() == 1:
            return model
        prepared: nn.Module = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        if is_sharded(prepared) or not trainable(prepared):
            return prepared
        wrapped = nn.parallel.DistributedDataParallel(prepared, broadcast_buffers=False, init_sync=False)
        wrapped.register_comm_hook(None, _sum_bucket)
        return wrapped

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; a Diverged says at which step, on which rows, and what is left."""
        try:
            return super().train(*args, **kwargs)
        except Diverged as error:
            every = [(micro, rank) for micro in range(len(self._losses)) for rank in range(ranks.count())]
            raise error if error.remedy else self._diverged(error.cause, every) from None

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of one micro-batch, and at the step's last one the guard on its gradients."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            require_finite_gradients(self.model)
        return loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
                     num_items_in_batch: Any = None) -> Any:  # fmt: skip
        """This rank's part of a loss that is a sum over ranks; Diverged, before backward, if that is no number."""
        counted = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        outputs = model(**inputs, **counted)
        if counted or bool((inputs["labels"] != IGNORED).any()):
            loss = outputs.loss if counted else outputs.loss / ranks.count()
        else:
            loss = outputs.logits.sum() * 0  # a mean over nothing is no number
        self._losses.append(ranks.sum_(loss.detach().clone()))
        if not bool(self._losses[-1].isfinite()):
            losses = ranks.gathered(float(loss.detach()))
            rank = next((r for r, value in enumerate(losses) if not math.isfinite(value)), 0)
            raise self._diverged(f"the loss is {losses[rank]}", [(len(self._losses) - 1, rank)])
        return (loss, outputs) if return_outputs else loss

    def _diverged(self, cause: str, met: Sequence[tuple[int, int]]) -> Diverged:
        """``cause`` with the step, the rows of its (micro-batch, rank) pairs ``met``, and the last checkpoint."""
        step = self.state.global_step
        rows = self.blame([self.train_dataset[i] for pair in met for i in self.order.batch(step, *pair)])
        error = Diverged(
            f"{cause} at step {step + 1}, {rows}; {self._kept()}",
            "look at these rows, or lower --lr, and train into another output; --resume would meet the same step",
        )
        return ranks.echoed(error, ranks.first())

    def _kept(self) -> str:
        last = next(reversed(checkpoints(self.folder)), None)
        return "there is no checkpoint yet" if last is None else f"the last good checkpoint is {last}"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the step's loss over all ranks."""
        if "loss" in logs and self._losses:
            logs["loss"] = float(ranks.in_order(self._losses))
            self._losses = []
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure and log the held-out loss."""
        metrics = {"eval_loss": self.held_out_loss()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The mean over held-out items of their micro-batch's loss; ranks take turns at them."""
        self.model.eval()
        losses = torch.zeros(len(self.held_out), dtype=torch.float64)
        for start in range(0, len(losses), ranks.count()):
            i = start + ranks.rank()
            inputs = self._prepare_inputs(self.data_collator(self.held_out[min(i, len(losses) - 1)]))
            loss = self.model(**inputs).loss  # all ranks take part in each forward of a sharded model
            if i < len(losses):
                losses[i] = float(loss)
        sizes = torch.tensor([len(batch) for batch in self.held_out], dtype=torch.float64)
        return float(ranks.sum_(losses) @ sizes / sizes.sum())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        optimizer, random = whole(self.optimizer.state_dict()), ranks.gathered(random_state())
        with assembled(self.model):
            require_same_everywhere(self.model)
            try:
                ranks.alone(lambda: self._write_checkpoint(optimizer, random))
            except OutOfResources as error:
                error.remedy = f"free some space, then run the same command with --resume; {self._kept()}"
                raise

    def _write_checkpoint(self, optimizer: Any, random: list[Any]) -> None:
        with staged(self.folder / f"step-{self.state.global_step:06d}", force=True) as part:
            part.mkdir()
            save_file(parameters(self.model), part / ADAPTER)
            save_torch(optimizer, part / OPTIMIZER)
            save_torch(self.lr_scheduler.state_dict(), part / SCHEDULER)
            save_torch(random, part / RANDOM)
            self.state.save_to_json(str(part / STATE))
        for old in checkpoints(self.folder)[:-KEPT]:
            shutil.rmtree(old.rename(self.folder / f".{old.name}.part"))  # never half there under its name

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_parameters(self.model, Path(resume_from_checkpoint) / ADAPTER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            inner = self.optimizer.optimizer
            inner.load_state_dict(deal_state(load_torch(Path(checkpoint) / OPTIMIZER), inner))
            self.lr_scheduler.load_state_dict(load_torch(Path(checkpoint) / SCHEDULER))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_state(load_torch(Path(checkpoint) / RANDOM)[ranks.rank()])


def require_same_everywhere(model: nn.Module) -> None:
    """Refuse to go on unless all ranks hold the same trained state and the same folded integers, bit for bit."""
    if ranks.count() == 1:
        return
    held = parameters(model)
    for name, layer in qlinears(model).items():
        now = layer.now
        for part in ("codes", "scale", "zero"):
            if (tensor := getattr(now, part)) is not None:
                held[f"{name} ({part})"] = tensor
    ranks.require_same(held)


def _sum_bucket(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """DDP's reduction of a bucket of gradients: their sum, in the order of ranks."""
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(ranks.sum_(bucket.buffer()))
    return done
