"""Which model answers, in which runtime: the subjects that `edgeqaf eval` can score, and their score."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from edgeqaf import asking, checkpoint, evaluate, metrics, plugins
from edgeqaf.child import stream
from edgeqaf.console import Advance, progress
from edgeqaf.data import IGNORED, Example, Task
from edgeqaf.dist import open_dist
from edgeqaf.errors import Refused, RuntimeAbsent, UsageError, VerificationFailed
from edgeqaf.method import Baseline
from edgeqaf.modeling import build
from edgeqaf.protocols import Artifact, Runtime, RuntimeOptions, fitting
from edgeqaf.qtensor import QTensor
from edgeqaf.quantizer import EachMatrix
from edgeqaf.run import load_run
from edgeqaf.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """What is scored: a label, the runtime's name, the folder its tokenizer is in, and two questions it answers.

    answers: (prompts, limit) -> the text generated greedily for each prompt, at most ``limit`` tokens, in order.
    losses:  (examples) -> the losses of each example's target tokens, in order.
    """

    label: str
    runtime: str
    root: str | None
    folder: Path
    answers: Callable[[Sequence[str], int], Iterator[str]]
    losses: Callable[[Sequence[Example]], Iterator[metrics.Losses]]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.folder)


Track = Callable[[str, int], AbstractContextManager[Advance]]


def score(subject: Subject, wanted: Sequence[str], *, examples: Sequence[Example] = (), tasks: Sequence[Task] = (),
          tokens_per_byte: float | None = None, track: Track = progress) -> dict[str, Any]:  # fmt: skip
    """The metrics ``wanted`` (of `metrics.METRICS`), by name; one definition for every runtime.

    examples: token sequences with training's labels: target_tokens, loss, perplexity (and bits_per_byte, if
              ``tokens_per_byte`` of a text is given), all from one forward of each.
    tasks:    matched and exact_match, rouge_l, and answers: the text generated for each, stripped.
    Raises Refused where there is nothing to score, or an example has no target.
    """
    if unknown := [name for name in wanted if name not in metrics.METRICS]:
        raise UsageError(f"unknown metric {unknown[0]!r}", f"known: {', '.join(metrics.METRICS)}")
    result: dict[str, Any] = {}
    if set(wanted) & set(metrics.OF_TOKENS):
        _require_targets(examples)
        with track(f"losses in {subject.runtime}", len(examples)) as advance:
            result |= metrics.of_losses(_followed(subject.losses(examples), advance), tokens_per_byte)
    if set(wanted) & set(metrics.OF_ANSWERS):
        if not tasks:
            raise Refused("no row has an answer to compare with", "score plain text with perplexity")
        if "rouge" in wanted:
            metrics.rouge_scorer()  # before any work
        limit = max(len(subject.tokenizer.encode(task.answer, prompt=False)) for task in tasks) + 8
        with track(f"answers in {subject.runtime}", len(tasks)) as advance:
            answers = [a.strip() for a in _followed(subject.answers([t.prompt for t in tasks], limit), advance)]
        result |= metrics.of_answers([task.answer for task in tasks], answers, wanted) | {"answers": answers}
    return result


def _require_targets(examples: Sequence[Example]) -> None:
    if not examples:
        raise Refused("there is no token to take the loss of", "give at least one row")
    for number, example in enumerate(examples, 1):
        if set(example.labels[1:]) <= {IGNORED}:
            raise Refused(
                f"example {number} has no target token", "its labels must keep one that has a token before it"
            )


def _followed(items: Iterable[T], advance: Advance) -> list[T]:
    found = []
    for item in items:
        found.append(item)
        advance(len(found))
    return found


def subject(folder: Path, *, base: Path | None, requantize: bool, runtime: str | None, configuration: str | None,
            options: RuntimeOptions, lora: Path | None = None) -> Subject:  # fmt: skip
    """The subject that a folder made by quantize, finetune, merge or export stands for; ``lora``: added to a base."""
    manifest = checkpoint.read_manifest(folder)
    kind = manifest["kind"]
    if lora and kind != "base":
        raise UsageError(f"--lora is for a base folder; {folder} is a {kind} folder", "pass a folder made by quantize")
    if requantize and kind != "run" and not lora:
        raise UsageError(
            f"--requantize is for a run folder; {folder} is a {kind} folder", "pass the run of a lossy method"
        )
    if kind == "dist":
        return _artifact(folder, runtime or "torch_cpu", configuration, options)
    if runtime and plugins.resolve("runtimes", runtime) != "torch_cpu":
        raise UsageError(
            f"{folder} is a {kind} folder; {runtime} needs an exported one", "export it first, and pass the dist folder"
        )
    if configuration:
        raise UsageError(
            f"{folder} is a {kind} folder; --configuration is for exported ones", "drop it, or pass a dist folder"
        )
    torch.set_num_threads(options.threads)
    if kind == "run":
        return _run(folder, base, requantize, options.device)
    model = checkpoint.load(folder)
    checkpoint.verify(model)
    if lora:
        return _lora(model, lora, requantize, options.device)
    return in_torch(kind, model.root, folder, build(model.config, model.tensors), options.device)


def _run(folder: Path, base: Path | None, requantize: bool, device: str) -> Subject:
    base_folder, model, method, manifest = load_run(folder, base)
    name = manifest["method"]
    if not requantize:
        return in_torch(f"{name}, unmerged", None, base_folder.folder, model, device)
    if not isinstance(method, Baseline):
        raise Refused(f"{folder}: {name} merges exactly, there is nothing to quantize again", "use edgeqaf merge")
    return _requantized(name, base_folder, method, model, device)


def _lora(base: checkpoint.QModel, folder: Path, requantize: bool, device: str) -> Subject:
    """A LoRA adapter that peft wrote, beside the integers of a base or merged and quantized again."""
    from edgeqaf import peft_adapter

    name, model = f"LoRA {folder.name}", peft_adapter.attach(build(base.config, base.tensors), folder)
    if requantize:
        return _requantized(name, base, plugins.find("adapters", "lora"), model, device)
    return in_torch(f"{name}, unmerged", None, base.folder, model, device)


def _requantized(name: str, base: checkpoint.QModel, method: Baseline, model: nn.Module, device: str) -> Subject:
    tensors = {n: base.tensors[n] for n in base.tensors}
    quantizer = base.manifest["options"].get("quantizer")
    if quantizer is None:
        raise Refused(
            f"{base.folder} was imported with its integers, and by which rule they were chosen is not known",
            "requantize a run over a base that edgeqaf quantize made",
        )
    quantize = plugins.find("quantizers", quantizer)
    if not isinstance(quantize, EachMatrix):
        raise Refused(
            f"{base.folder} was quantized by {quantizer}, which needs more of a model than a matrix",
            "requantize a run over a base that --quantizer rtn made",
        )
    for tensor_name, weights in method.merged_weights(model).items():
        stored = base.tensors[tensor_name]
        assert isinstance(stored, QTensor)  # a method's layers are quantized ones
        tensors[tensor_name] = quantize(weights.numpy(), stored.grid)
    again = build(base.config, tensors)
    return in_torch(f"{name}, merged in 16 bit and quantized again", None, base.folder, again, device)


def in_torch(label: str, root: str | None, folder: Path, model: nn.Module, device: str = "cpu") -> Subject:
    """A model in memory, with the tokenizer in ``folder``; root: its Merkle root, None for one with an adapter."""
    tokenizer = Tokenizer(folder)
    model.to(device)

    def answers(prompts: Sequence[str], limit: int) -> Iterator[str]:
        ids = [tokenizer.encode(prompt, prompt=True) for prompt in prompts]
        for made in evaluate.generate(model.eval(), tokenizer, ids, limit):
            yield tokenizer.decode(made)

    def losses(examples: Sequence[Example]) -> Iterator[metrics.Losses]:
        return evaluate.losses(model.eval(), tokenizer.pad, examples)

    return Subject(label, f"torch {torch.__version__}", root, folder, answers, losses)


def _artifact(folder: Path, runtime_name: str, configuration: str | None, options: RuntimeOptions) -> Subject:
    name = plugins.resolve("runtimes", runtime_name)
    runtime: Runtime = plugins.find("runtimes", name)
    available = runtime.availability(options)
    if available.version is None:
        raise RuntimeAbsent(f"{name} is absent: {available.reason}", "install it, or score with another --runtime")
    dist = open_dist(folder)
    artifacts = [a for a in dist.artifacts if fitting(runtime, a)]
    if not artifacts:
        raise Refused(
            f"{folder} has no artifact that {name} reads", f"export it with --format {runtime.reads or 'gguf'}"
        )
    _require_root(artifacts[0], dist.receipt["root"])
    known = {c.name: c for c in fitting(runtime, artifacts[0])}
    if configuration is not None and configuration not in known:
        raise UsageError(f"{name} has no configuration {configuration!r}", f"known: {', '.join(known)}")
    chosen = known[configuration] if configuration else list(known.values())[-1]

    def ask(question: Callable[..., Iterator[Any]], *about: Any) -> Iterator[Any]:
        arguments = (name, artifacts[0], chosen, options, *about)
        yield from question(*arguments) if runtime.reads is None else stream(name, question, *arguments)

    return Subject(
        f"{artifacts[0].format} artifact",
        f"{name} {chosen.name}",
        dist.receipt["root"],
        artifacts[0].reference,
        lambda prompts, limit: ask(asking.generate, prompts, limit),
        lambda examples: ask(asking.losses, examples),
    )


def _require_root(artifact: Artifact, root: str) -> None:
    """A score is of the receipt's root; refuse to give it to other integers."""
    if (found := artifact.root) != root:
        raise VerificationFailed(
            f"{artifact.path} reads back as root {found[:12]}, the receipt says {root[:12]}",
            "see which tensor: edgeqaf verify; then export again",
        )
