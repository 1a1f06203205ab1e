"""merge: fold an adapter into the stored integers."""

from pathlib import Path
from typing import Annotated

import typer

from edgeqaf.options import DryRun, Force, Json, Output, claim


def command(
    run: Annotated[Path, typer.Argument(help="Run folder made by finetune.")],
    output: Output,
    base: Annotated[Path | None, typer.Option(help="The base it was trained on, if it has moved.")] = None,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Fold the adapter into the integers and prove that nothing was lost."""
    from edgeqaf.checkpoint import WEIGHTS
    from edgeqaf.console import emit, say
    from edgeqaf.dist import carriers
    from edgeqaf.merge import merge, open_lossless, summary

    if dry_run:
        opened = open_lossless(run, base)
        # A tensor takes the same room when other integers are in it.
        count, written = len(opened.layers), (opened.base.folder / WEIGHTS).stat().st_size
        say(f"would fold {opened.manifest['method']} into {count} tensors of root {opened.base.root[:12]}")
        say(f"{written / 1e6:.1f} MB to write")
        if json:
            emit({"parent": opened.base.root, "tensors": count, "bytes": written})
        return
    claim(output, "merged", force)
    merged, movements = merge(run, output, base=base, force=force)
    counts = summary(movements)
    say(f"{counts['weights']:,} weights equal those of the training forward, all bits; logits equal before and after")
    say(f"codes moved: {counts['moved']:,} ({counts['moved'] / max(counts['weights'], 1):.1%})")
    say(f"by more than one: {counts['moved_far']:,}")
    say(f"saturated: {counts['saturated_before']:,} before, {counts['saturated']:,} after")
    say(f"tensors untouched: {', '.join(counts['untouched']) or 'none'}")
    say(f"{output}: root {merged.root[:12]} (parent {str(merged.manifest['parent'])[:12]})")
    say(f"next: edgeqaf export {output} --format {','.join(carriers(merged)) or 'FORMAT'} -o dist")
    if json:
        emit({"output": str(output), "root": merged.root, "parent": merged.manifest["parent"], **counts})
