"""What a run survives: being killed at any moment, a full disk; and what stops it: losses that are no numbers."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import launching
import pytest
import torch

from edgeqaf import finetune, nn, ranks, resume, staging, trainer
from edgeqaf.adapters.lowrank import LowRank
from edgeqaf.callbacks import Progress
from edgeqaf.checkpoint import QModel
from edgeqaf.data.batches import Collator
from edgeqaf.errors import Diverged
from edgeqaf.gradient import Flow
from edgeqaf.guards import blame
from edgeqaf.method import adapter_state
from edgeqaf.resume import checkpoints
from edgeqaf.tokenizer import Tokenizer

FILES = "adapter_model.safetensors", "edgeqaf.json", "log.jsonl"
RATES = {"codes": ["--lr", 0.5], "lowrank": ["--lr", 0.5], "lota": ["--rank", 4], "lora": ["--rank", 4]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [{"prompt": f"Say number {i}.", "completion": f"number: {i}"} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


@pytest.fixture(scope="module")
def line(tiny_base: Path, data: Path) -> Any:
    """The command line of a run of 6 steps, with a checkpoint at every second."""

    def made(method: str, out: Path, *more: object) -> list[object]:
        return ["finetune", tiny_base, "--data", data, "-o", out, "--method", method, *RATES[method], "--steps", 6,
                "--batch", 4, "--max-length", 48, "--threads", 1, "--save-every", 2, "--eval-every", 3,
                *more]  # fmt: skip

    return made


@pytest.fixture(scope="module")
def whole(line: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run that nothing happened to, by method and more of its command line; made once."""
    folder = tmp_path_factory.mktemp("whole")

    def made(method: str, *more: object) -> Path:
        out = folder / "-".join(map(str, (method, *more)))
        if not out.is_dir():
            launching.run(folder, line(method, out, *more))
        return out

    return made


def same(one: Path, other: Path) -> None:
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert [p.name for p in checkpoints(one / "checkpoints")] == [p.name for p in checkpoints(other / "checkpoints")]
    assert not [p for p in one.rglob("*") if p.name.startswith(".")]


def at_call(number: int, act: Callable[..., Any], owner: Any, name: str) -> None:
    """Have ``act(real, *arguments)`` stand for the ``number``-th call of ``owner.name``."""
    real, calls = getattr(owner, name), []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return act(real, *arguments) if len(calls) == number else real(*arguments, **options)

    setattr(owner, name, counted)


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file(real: Any, value: Any, file: Path) -> None:
    real(value, file)
    os.truncate(file, file.stat().st_size // 2)
    die()


def half_a_line(real: Any, self: Progress, entry: dict[str, float], **_: Any) -> None:
    with self.log.open("a") as log:
        log.write(json.dumps({"step": 9, **entry})[:-7])
    die()


def half_a_folder(real: Any, folder: Path) -> None:
    next(p for p in folder.iterdir()).unlink()
    die()


# Where a run is killed, resumed, killed again: (function's owner, its name, which call of it, what happens there).
MOMENTS: dict[str, tuple[Any, str, int, Callable[..., Any]]] = {
    "before any checkpoint, somewhere in a forward": (nn.QLinear, "forward", 17, die),
    "in the first step's log line": (Progress, "_append", 1, half_a_line),
    "in the optimizer's file": (trainer, "save_torch", 1, half_a_file),
    "with the checkpoint staged": (staging, "_replace", 2, die),  # the first is that of the log
    "after a checkpoint, in the next step's backward": (Flow, "__post_init__", 0, die),
    "as an old checkpoint is removed": (shutil, "rmtree", 0, half_a_folder),
    "with the adapter written, before the manifest": (finetune, "_write", 2, die),
}


def kill(moment: str, method: str) -> None:
    owner, name, number, act = MOMENTS[moment]
    if moment == "after a checkpoint, in the next step's backward":
        after = trainer.GridTrainer._write_checkpoint

        def then(self: Any, *arguments: Any) -> None:
            after(self, *arguments)
            owner, name = (LowRank, "gradients") if method == "lowrank" else (torch.Tensor, "backward")
            at_call(1 + 4 * (method == "lowrank"), act, owner, name)

        trainer.GridTrainer._write_checkpoint = then  # type: ignore[method-assign]
    elif name == "rmtree":  # the trainer's own, of a checkpoint; not of what was staged
        trainer.shutil = type("Shutil", (), {"rmtree": lambda folder: half_a_folder(None, folder)})  # type: ignore[assignment]
    else:
        at_call(number, act, owner, name)


@pytest.mark.parametrize("method", ["codes", *(pytest.param(m, marks=pytest.mark.slow) for m in list(RATES)[1:])])
def test_a_run_killed_at_every_bad_moment_in_turn_ends_in_the_same_bits(
    method: str, line: Any, whole: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for moment in MOMENTS:
        arguments = line(method, out, *(["--resume"] if out.exists() else []))
        (child,) = launching.start(tmp_path, arguments, before=kill, given=[moment, method])
        assert child.wait() == -signal.SIGKILL, (moment, child.output())
        assert not (out / "edgeqaf.json").exists()
    launching.run(tmp_path, line(method, out, "--resume"))
    same(out, whole(method))


def one_rank_dies(rank: int, moment: str, method: str) -> None:
    if ranks.rank() == rank:
        kill(moment, method)


@pytest.mark.parametrize(
    ("rank", "moment"), [(0, "in the optimizer's file"), (1, "before any checkpoint, somewhere in a forward")]
)
def test_when_one_rank_is_killed_the_other_ends_and_says_so(
    rank: int, moment: str, line: Any, whole: Any, tmp_path: Path
) -> None:
    more = "--accumulate", 2
    children = launching.start(
        tmp_path, line("lowrank", tmp_path / "run", *more), ranks=2, before=one_rank_dies,
        given=[rank, moment, "lowrank"],
    )  # fmt: skip
    codes = [child.wait() for child in children]
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 7)
    said = children[1 - rank].output()
    assert "error: another rank ended, or is out of reach\n  fix: see its own message; run the same command" in said
    assert "Traceback" not in said
    launching.run(tmp_path, line("lowrank", tmp_path / "run", *more, "--resume"), ranks=2)
    same(tmp_path / "run", whole("lowrank", *more))


def fill_the_disk(room: int) -> None:
    """Let no file grow beyond ``room`` bytes from the second checkpoint on: a real error of a real write."""
    write = trainer.GridTrainer._write_checkpoint
    seen: list[int] = []

    def filled(self: Any, *arguments: Any) -> None:
        seen.append(self.state.global_step)
        if len(seen) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        write(self, *arguments)

    trainer.GridTrainer._write_checkpoint = filled  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("method", "file", "count"),
    [("codes", "adapter_model.safetensors", 1), ("lowrank", "optimizer.pt", 1), ("lowrank", "optimizer.pt", 2)],
)
def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_when_there_is_room(
    method: str, file: str, count: int, line: Any, whole: Any, tmp_path: Path
) -> None:
    more = ("--accumulate", 2) if count == 2 else ()
    room = (whole(method, *more) / "checkpoints" / "step-000006" / file).stat().st_size - 1000
    out = tmp_path / "run"
    children = launching.start(tmp_path, line(method, out, *more), ranks=count, before=fill_the_disk, given=[room])
    assert [child.wait() for child in children] == [5] * count
    said = children[0].output()
    assert "step-000004: the disk filled up while writing (File too large)" in said
    assert f"fix: free some space, then run the same command with --resume; the last good checkpoint is {out}" in said
    assert "step-000002\n" in said
    assert [child.output() for child in children[1:]] == [""] * (count - 1)
    assert os.listdir(out / "checkpoints") == ["step-000002"]
    launching.run(tmp_path, line(method, out, *more, "--resume"), ranks=count)
    same(out, whole(method, *more))


def test_a_damaged_checkpoint_is_refused_by_name(line: Any, whole: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole("lowrank"), out)
    (out / "edgeqaf.json").unlink()
    shutil.rmtree(out / "checkpoints" / "step-000006")
    state = out / "checkpoints" / "step-000004" / resume.OPTIMIZER
    state.write_bytes(state.read_bytes()[:-100])
    (child,) = launching.start(tmp_path, line("lowrank", out, "--resume"))
    assert child.wait() == 3
    assert f"{state}: " in child.output()
    assert (
        "fix: the checkpoint is damaged; remove its folder, and --resume goes on from the one before" in child.output()
    )


def poison_row(text: str, base: str) -> None:
    """Make every loss of a batch with one row of the data no number."""
    marked = Tokenizer(Path(base)).encode(text, prompt=False)
    collate = Collator.__call__

    def poisoned(self: Collator, batch: Any) -> Any:
        found = any(marked == e.ids[i : i + len(marked)] for e in batch for i in range(len(e.ids)))
        return collate(self, batch) | ({"bad": torch.tensor(True)} if found else {})

    Collator.__call__ = poisoned  # type: ignore[method-assign]
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def failing(self: Any, *arguments: Any, bad: Any = None, **options: Any) -> Any:
        outputs = forward(self, *arguments, **options)
        if bad is not None:
            outputs.loss = outputs.loss * float("nan")
        return outputs

    LlamaForCausalLM.forward = failing


@pytest.mark.parametrize("count", [1, 2])
def test_a_loss_that_is_no_number_stops_before_the_step_and_names_the_rows(
    count: int, line: Any, tiny_base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = line("codes", out, "--accumulate", 2, "--save-every", 1, "--holdout", 0)
    children = launching.start(
        tmp_path, arguments, ranks=count, before=poison_row, given=["number: 17", str(tiny_base)]
    )  # fmt: skip
    assert [child.wait() for child in children] == [Diverged.exit_code] * count
    assert [child.output() for child in children[1:]] == [""] * (count - 1)
    cause, remedy = children[0].output().splitlines()[-2:]
    step = len((out / "log.jsonl").read_text().splitlines()) + 1
    assert cause.startswith(f"error: the loss is nan at step {step}, rows ")
    numbers = [int(n) for n in cause.partition("rows ")[2].partition(" of")[0].split(", ")]
    assert len(numbers) == 4  # of the micro-batch, on the rank that had it
    assert 18 in numbers
    assert f"row {numbers[0]}: 'Say number {numbers[0] - 1}. number: {numbers[0] - 1}'" in cause
    assert f"step-{step - 1:06d}" in cause if step > 1 else "there is no checkpoint yet" in cause
    assert remedy.startswith("  fix: look at these rows, or lower --lr")


def test_a_loss_that_is_no_number_leaves_the_codes_as_the_last_step_left_them(
    line: Any, tiny_model: QModel, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[dict[str, torch.Tensor]] = []
    step = trainer.GridTrainer.compute_loss

    def third(self: Any, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 2:
            held.append({name: t.clone() for name, t in adapter_state(self.model).items()})
            with torch.no_grad():
                self.model.model.norm.weight.fill_(float("inf"))
        return step(self, model, inputs, *arguments, **options)

    monkeypatch.setattr(trainer.GridTrainer, "compute_loss", third)
    kept: list[Any] = []
    monkeypatch.setattr(finetune, "prepare", lambda *a, real=finetune.prepare: kept.append(real(*a)) or kept[0])
    settings = finetune.Settings(method="codes", options={"lr": 0.5}, steps=6, batch=4, max_length=48, threads=1)
    with pytest.raises(Diverged, match=r"the loss is nan at step 3, rows [\d, ]+ of the data; .*no checkpoint yet"):
        finetune.finetune(tiny_model.folder, data, tmp_path / "run", settings)
    after = adapter_state(kept[0].model)
    assert all(torch.equal(after[name], tensor) for name, tensor in held[0].items())


def spoil(method: str) -> None:
    """Let one layer's gradient overflow in the second step, though the loss is a number."""
    owner, name = (LowRank, "gradients") if method == "lowrank" else (Flow, "weight_gradient")
    real = getattr(owner, name)
    calls: list[int] = []

    def spoiled(self: Any, *arguments: Any) -> Any:
        found = real(self, *arguments)
        calls.append(1)
        if len(calls) == 20:  # of 14 layers a step
            (found[0] if isinstance(found, list) else found).view(-1)[5] = float("inf")
        return found

    setattr(owner, name, spoiled)


@pytest.mark.parametrize(("method", "accumulate"), [("codes", 1), ("codes", 2), ("lowrank", 1)])
def test_a_gradient_that_is_no_number_names_the_layer(method: str, accumulate: int, line: Any, tmp_path: Path) -> None:
    arguments = line(method, tmp_path / "run", "--accumulate", accumulate)
    (child,) = launching.start(tmp_path, arguments, before=spoil, given=[method])
    assert child.wait() == Diverged.exit_code
    (cause,) = [text for text in child.output().splitlines() if text.startswith("error: ")]
    step = 2 if accumulate == 1 else 1
    assert cause.startswith("error: the gradient of model.layers.")
    assert f" is not finite at step {step}, rows " in cause
    rows = cause.partition("rows ")[2].partition(" of the data")[0].split(", ")
    assert len(rows) == 4 * accumulate


def test_rows_are_found_again_in_every_shape(tiny_base: Path) -> None:
    from edgeqaf.data.examples import join, pieces

    tokenizer = Tokenizer(tiny_base)
    rows = [{"prompt": "a", "completion": "b"}, {"text": "Once. " * 40}, {"text": "Twice."}, {"text": "Thrice."},
            {"prompt": "long " * 90, "completion": "c"}]  # fmt: skip
    examples = join(pieces(rows, tokenizer, 24).examples, 24)
    pair, windows, joined = examples[0], examples[1:-1], examples[-1]
    assert blame([pair], rows, tokenizer, 24) == "row 1 of the data; row 1: 'a b'"
    assert blame([windows[0]], rows, tokenizer, 24).startswith("row 2 of the data; row 2: 'Once. Once.")
    assert blame([windows[0]], rows, tokenizer, 24).endswith("...'")
    assert "3, 4 of the data" in blame([joined], rows, tokenizer, 24)
    assert blame([pair], rows[1:], tokenizer, 24) == "rows that are no longer in the data"
