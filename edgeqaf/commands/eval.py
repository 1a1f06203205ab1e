"""eval: exact match on a data file."""

from pathlib import Path
from typing import Annotated

import typer

from edgeqaf.options import Json, LlamaLib, claim_report


def command(
    model: Annotated[Path, typer.Argument(help="Folder made by quantize, finetune, merge or export.")],
    data: Annotated[Path, typer.Option(help="Test rows with a prompt and an answer: .jsonl or .csv.")],
    runtime: Annotated[str | None, typer.Option(help="For a dist folder: torch, onnxruntime, llama.cpp.")] = None,
    configuration: Annotated[
        str | None, typer.Option(help="Which configuration of it; default: the one users get.")
    ] = None,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Merge a lossy run in 16 bit and quantize again first.")
    ] = False,
    base: Annotated[Path | None, typer.Option(help="The base of a run, if it has moved.")] = None,
    columns: Annotated[str | None, typer.Option(help="CSV columns: PROMPT,COMPLETION.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Score only the first so many rows.")] = None,
    label: Annotated[str | None, typer.Option(help="Name of this score in reports.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the score, with every answer, as JSON.")
    ] = None,
    llama_lib: LlamaLib = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads the runtime may use.")] = 1,
    json: Json = False,
) -> None:
    """Generate greedily from each prompt and count the answers that match exactly."""
    from edgeqaf import evaluate
    from edgeqaf.console import emit, progress, say
    from edgeqaf.data import read_rows, tasks
    from edgeqaf.jsonfile import write_json
    from edgeqaf.protocols import RuntimeOptions
    from edgeqaf.scoring import subject
    from edgeqaf.staging import staged
    from edgeqaf.tokenizer import Tokenizer

    if output:
        claim_report(output, "exact_match")
    chosen = [c.strip() for c in columns.split(",")] if columns else []
    table = read_rows(data, chosen)[:rows]
    options = RuntimeOptions(llama_lib, threads)
    scored = subject(
        model, base=base, requantize=requantize, runtime=runtime, configuration=configuration, options=options
    )
    tokenizer = Tokenizer(scored.folder)
    questions = tasks(table, tokenizer)
    limit = evaluate.answer_limit(questions, lambda text: tokenizer.encode(text, prompt=False))
    with progress(f"eval {scored.runtime}", len(questions)) as advance:
        score = evaluate.exact_match(questions, scored.answer(questions, limit), advance)
    result = {
        "label": label or scored.label, "runtime": scored.runtime, "rows": score.rows, "matched": score.matched,
        "exact_match": score.exact_match, "root": scored.root,
    }  # fmt: skip
    say(f"{result['label']} in {scored.runtime}: {score.matched} of {score.rows} exact ({score.exact_match:.1%})")
    if output:
        answers = [
            {"prompt": q.prompt, "expected": q.answer, "found": a}
            for q, a in zip(questions, score.answers, strict=True)
        ]
        with staged(output, force=True) as part:
            write_json(part, {**result, "answers": answers})
    if json:
        emit(result)
