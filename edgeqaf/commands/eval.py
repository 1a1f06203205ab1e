"""eval: loss, perplexity, exact match and ROUGE-L on a data file; lm-eval's tasks on local task files."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeqaf.options import Device, Json, LlamaLib, PlacesFolder, claim_report, listed, place

if TYPE_CHECKING:
    from edgeqaf.scoring import Subject

WINDOW = 256  # tokens, as finetune's default
Found = tuple[dict[str, Any], dict[str, Any]]  # the score; what only the file of --output keeps beside it


def command(
    model: Annotated[Path, typer.Argument(help="Folder made by quantize, finetune, merge or export.")],
    data: Annotated[str | None, typer.Option(help="Test rows, from whatever finetune takes them.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Instead: task files of lm-eval, or folders of them: A.yaml,FOLDER.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="loss,perplexity,exact-match,rouge; default: exact-match, or perplexity for plain text."),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens per window; default: 256, for tasks the model's context up to 2048."),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Plain text: tokens from window to window; default: --max-length.")
    ] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Few-shot examples for tasks that do not fix them.")] = None,
    runtime: Annotated[str | None, typer.Option(help="For a dist folder: torch, onnxruntime, llama.cpp.")] = None,
    configuration: Annotated[
        str | None, typer.Option(help="Which configuration of it; default: the one users get.")
    ] = None,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Merge a lossy run, or --lora, in 16 bit and quantize again first.")
    ] = False,
    lora: Annotated[Path | None, typer.Option(help="A LoRA adapter of peft (its folder) to put on a base.")] = None,
    base: Annotated[Path | None, typer.Option(help="The base of a run, if it has moved.")] = None,
    columns: Annotated[str | None, typer.Option(help="CSV columns: PROMPT,COMPLETION.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Score only the first so many rows (of each task).")] = None,
    label: Annotated[str | None, typer.Option(help="Name of this score in reports.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the score, with every answer, as JSON.")
    ] = None,
    llama_lib: LlamaLib = None,
    places: PlacesFolder = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads the runtime may use.")] = 1,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Score a model: PyTorch or an exported artifact, on a data file or on lm-eval's tasks."""
    from edgeqaf.console import emit
    from edgeqaf.errors import UsageError
    from edgeqaf.jsonfile import write_json
    from edgeqaf.protocols import RuntimeOptions
    from edgeqaf.staging import staged

    if output:
        claim_report(output, "runtime")
    if (data is None) == (tasks is None):
        raise UsageError("--data and --tasks are the two things to score on", "pass one of them")
    _require_useful(tasks, metric=metric, stride=stride, columns=columns, shots=shots)
    options = RuntimeOptions(llama_lib, threads, place(device), places)
    folder = {"base": base, "requantize": requantize, "runtime": runtime, "configuration": configuration, "lora": lora}
    if data is not None:
        found, kept = _on_data(model, folder, options, data, columns, rows, metric, max_length or WINDOW, stride)
    else:
        found, kept = _on_tasks(model, folder, options, str(tasks), rows, shots, max_length)
    result = {**found, "label": label or found["label"]}
    _tell(result)
    if output:
        with staged(output, force=True) as part:
            write_json(part, {**result, **kept})
    if json:
        emit(result)


def _require_useful(tasks: str | None, **options: Any) -> None:
    """Refuse an option that would be without effect."""
    from edgeqaf.errors import UsageError

    for name, value in options.items():
        if value is not None and (name == "shots") == (tasks is None):
            kind = "--tasks" if name == "shots" else "--data"
            raise UsageError(f"--{name} {value} is for {kind}", f"drop it, or score with {kind}")


def _about(scored: "Subject") -> dict[str, Any]:
    return {"label": scored.label, "runtime": scored.runtime, "root": scored.root}


def _on_data(model: Path, folder: Mapping[str, Any], options: Any, data: str, columns: str | None,
             rows: int | None, metric: str | None, max_length: int, stride: int | None) -> Found:  # fmt: skip
    """The score on a data file, and what only the file of ``--output`` keeps of it."""
    from edgeqaf.data import read_rows
    from edgeqaf.material import chosen, prepare
    from edgeqaf.scoring import score, subject

    table = read_rows(data, listed(columns))[:rows]
    metrics = chosen(metric, table)
    scored = subject(model, **folder, options=options)
    ready = prepare(table, scored.tokenizer, metrics, max_length, stride)
    found = score(scored, metrics, examples=ready.examples, tasks=ready.tasks, tokens_per_byte=ready.tokens_per_byte)
    answers = [
        {"prompt": task.prompt, "expected": task.answer, "found": answer}
        for task, answer in zip(ready.tasks, found.pop("answers", []), strict=True)
    ]
    window = {"max_length": max_length} if ready.examples else {}
    if ready.examples and any("text" in row for row in table):
        window["stride"] = stride or max_length
    return {**_about(scored), "rows": len(table), **window, **found}, {"answers": answers} if answers else {}


def _on_tasks(model: Path, folder: Mapping[str, Any], options: Any, tasks: str, rows: int | None,
              shots: int | None, max_length: int | None) -> Found:  # fmt: skip
    """What lm-eval finds, and the samples that only the file of ``--output`` keeps."""
    from edgeqaf.errors import RuntimeAbsent
    from edgeqaf.scoring import subject

    try:
        from edgeqaf.harness import evaluate
    except ImportError as error:
        raise RuntimeAbsent(f"--tasks needs lm-eval: {error}", "pip install 'edgeqaf[eval]'") from None
    scored = subject(model, **folder, options=options)
    places = [Path(place) for place in listed(tasks)]
    found = evaluate(scored, places, rows=rows, shots=shots, max_length=max_length)
    samples = {"samples": found.pop("samples")}
    return {**_about(scored), **found}, samples


def _tell(result: Mapping[str, Any]) -> None:
    """The score in words."""
    from edgeqaf.console import say, table

    who = f"{result['label']} in {result['runtime']}"
    if "exact_match" in result:
        say(f"{who}: {result['matched']} of {result['rows']} exact ({result['exact_match']:.1%})")
    if "rouge_l" in result:
        say(f"{who}: ROUGE-L {result['rouge_l']:.3f} over {result['rows']} rows")
    if "loss" in result:
        more = f", {result['bits_per_byte']:.4f} bits per byte" if "bits_per_byte" in result else ""
        perplexity = "beyond measure" if result["perplexity"] is None else f"{result['perplexity']:.3f}"
        tokens = f"{result['target_tokens']:,} tokens"
        say(f"{who}: loss {result['loss']:.4f} nats per token, perplexity {perplexity}{more}; {tokens}")
    if "tasks" in result:
        found = {**result["groups"], **result["tasks"]}
        lines = [
            (name, metric, f"{value:.4f}", _plus_minus(values, metric), values.get("rows", ""))
            for name, values in found.items()
            for metric, value in values.items()
            if metric != "rows" and "_stderr" not in metric
        ]
        table(f"{who}, {result['harness']}", ("task", "metric", "value", "± standard error", "rows"), lines)
        if result["truncated"]:
            say(f"{result['truncated']} requests were longer than the window and lost the beginning of their context")


def _plus_minus(values: Mapping[str, Any], metric: str) -> str:
    name, _, filtered = metric.partition(",")
    error = values.get(f"{name}_stderr" + (f",{filtered}" if filtered else ""))
    return "" if error is None else f"{error:.4f}"
