"""Which model answers, in which runtime: the subjects that `edgeqaf eval` can score."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeqaf import checkpoint, evaluate, plugins
from edgeqaf.child import stream
from edgeqaf.data import Task
from edgeqaf.digest import merkle_root, tensor_digest
from edgeqaf.dist import open_dist
from edgeqaf.errors import Refused, RuntimeAbsent, UsageError, VerificationFailed
from edgeqaf.method import Baseline
from edgeqaf.modeling import build
from edgeqaf.protocols import Artifact, Configuration, Runtime, RuntimeOptions
from edgeqaf.run import load_run
from edgeqaf.tokenizer import Tokenizer


@dataclass(frozen=True)
class Subject:
    """What is scored: a label, the runtime's name, the folder its tokenizer is in, its answers."""

    label: str
    runtime: str
    root: str | None
    folder: Path
    answers: Any

    def answer(self, tasks: Sequence[Task], limit: int) -> Iterator[str]:
        """The generated text for each task, in order."""
        answers: Iterator[str] = self.answers(tasks, limit)
        return answers


def subject(folder: Path, *, base: Path | None, requantize: bool, runtime: str | None, configuration: str | None,
            options: RuntimeOptions) -> Subject:  # fmt: skip
    """The subject that a folder made by quantize, finetune, merge or export stands for."""
    manifest = checkpoint.read_manifest(folder)
    kind = manifest["kind"]
    if requantize and kind != "run":
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
    if kind == "run":
        return _run(folder, base, requantize)
    model = checkpoint.load(folder)
    checkpoint.verify(model)
    return _torch(kind, model.root, folder, build(model.config, model.tensors))


def _run(folder: Path, base: Path | None, requantize: bool) -> Subject:
    base_folder, model, method, manifest = load_run(folder, base)
    name = manifest["method"]
    if not requantize:
        return _torch(f"{name}, unmerged", None, base_folder.folder, model)
    if not isinstance(method, Baseline):
        raise Refused(f"{folder}: {name} merges exactly, there is nothing to quantize again", "use edgeqaf merge")
    tensors = {n: base_folder.tensors[n] for n in base_folder.tensors}
    quantize = plugins.find("quantizers", base_folder.manifest["options"]["quantizer"])
    for tensor_name, weights in method.merged_weights(model).items():
        tensors[tensor_name] = quantize(weights.numpy(), plugins.find("grids", base_folder.manifest["options"]["grid"]))
    return _torch(
        f"{name}, merged in 16 bit and quantized again", None, base_folder.folder, build(base_folder.config, tensors)
    )


def _torch(label: str, root: str | None, folder: Path, model: nn.Module) -> Subject:
    tokenizer = Tokenizer(folder)

    def answers(tasks: Sequence[Task], limit: int) -> Iterator[str]:
        prompts = [tokenizer.encode(task.prompt, prompt=True) for task in tasks]
        for ids in evaluate.generate(model.eval(), tokenizer, prompts, limit):
            yield tokenizer.decode(ids)

    return Subject(label, f"torch {torch.__version__}", root, folder, answers)


def _artifact(folder: Path, runtime_name: str, configuration: str | None, options: RuntimeOptions) -> Subject:
    name = plugins.resolve("runtimes", runtime_name)
    runtime: Runtime = plugins.find("runtimes", name)
    available = runtime.availability(options)
    if available.version is None:
        raise RuntimeAbsent(f"{name} is absent: {available.reason}", "install it, or score with another --runtime")
    dist = open_dist(folder)
    artifacts = [a for a in dist.artifacts if runtime.reads in (None, a.format)]
    if not artifacts:
        raise Refused(
            f"{folder} has no artifact that {name} reads", f"export it with --format {runtime.reads or 'gguf'}"
        )
    _require_root(artifacts[0], dist.receipt["root"])
    known = {c.name: c for c in runtime.configurations}
    if configuration is not None and configuration not in known:
        raise UsageError(f"{name} has no configuration {configuration!r}", f"known: {', '.join(known)}")
    chosen = known[configuration] if configuration else runtime.configurations[-1]

    def answers(tasks: Sequence[Task], limit: int) -> Iterator[str]:
        prompts = [task.prompt for task in tasks]
        arguments = (name, artifacts[0], chosen, options, prompts, limit)
        yield from _generate(*arguments) if runtime.reads is None else stream(name, _generate, *arguments)

    return Subject(
        f"{artifacts[0].format} artifact",
        f"{name} {chosen.name}",
        dist.receipt["root"],
        artifacts[0].reference,
        answers,
    )


def _require_root(artifact: Artifact, root: str) -> None:
    """A score is of the receipt's root; refuse to give it to other integers."""
    found = merkle_root({name: tensor_digest(name, stored.tensor) for name, stored in artifact.tensors.items()})
    if found != root:
        raise VerificationFailed(
            f"{artifact.path} reads back as root {found[:12]}, the receipt says {root[:12]}",
            "see which tensor: edgeqaf verify; then export again",
        )


def _generate(name: str, artifact: Artifact, configuration: Configuration, options: RuntimeOptions,
              prompts: Sequence[str], limit: int) -> Iterator[str]:  # fmt: skip
    """The text that one runtime generates from an artifact for each prompt, in order."""
    runtime: Runtime = plugins.find("runtimes", name)
    with runtime.open(artifact, configuration, options) as session:
        for ids in session.generate([session.encode(prompt) for prompt in prompts], limit):
            yield session.decode(ids)
