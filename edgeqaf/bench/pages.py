"""The report: one Markdown page whose tables are made anew between markers, one HTML page, pictures, all results.

    methods.md     what is between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->`` is replaced; prose stays
    methods.html   the same tables and pictures in one file
    methods.json   every result, one cell a line; `edgeqaf bench methods --from` begins with it
    *.svg          the pictures

The same results give the same bytes.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from edgeqaf.bench import figures, store, tables
from edgeqaf.bench.cell import Cell
from edgeqaf.bench.store import Result
from edgeqaf.bench.summary import Summary, differing_batches, mixed_models
from edgeqaf.bench.tables import Table
from edgeqaf.bench.task import HELD_OUT, QUESTIONS, ROWS, WINDOW
from edgeqaf.errors import Refused
from edgeqaf.staging import staged

PAGE = "methods"
SKELETON = """# Methods compared

Tables and pictures are made by `edgeqaf bench methods --report docs/benchmarks`, between markers; the rest is not.
"""


@dataclass(frozen=True)
class Picture:
    """stem: of its file; caption: said under it."""

    stem: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class Section:
    """A part that is made anew; name: in its markers."""

    name: str
    title: str
    text: str = ""
    tables: Sequence[Table] = field(default_factory=tuple)
    pictures: Sequence[Picture] = field(default_factory=tuple)


def write(folder: Path, results: Mapping[Cell, Result], planned: int) -> list[Path]:
    """Write the report of ``results``, of ``planned`` cells in all; return the files.

    Raises Refused where results are of different model files, or runs of one seed saw different batches.
    """
    _require_comparable(results)
    made = list(sections(Summary(results), planned))
    page = folder / f"{PAGE}.md"
    before = page.read_text("utf-8") if page.is_file() else SKELETON
    texts = {f"{PAGE}.md": renewed(before, made), f"{PAGE}.html": _html(made), f"{PAGE}.json": _lines(results)}
    texts |= {f"{p.stem}.svg": figures.standalone(p.svg) for section in made for p in section.pictures}
    for name, text in texts.items():
        with staged(folder / name, force=True) as part:
            part.write_text(text, "utf-8")
    return [folder / name for name in texts]


def sections(summary: Summary, planned: int) -> Iterator[Section]:
    """What there is to show, model by model."""
    yield Section("about", "What was run", _about(summary, planned))
    for model in summary.present("model"):
        yield Section(f"goals {model}", f"{model}: goals", tables=[tables.goals(summary, model)])
        yield Section(f"loss {model}", f"{model}: held-out loss", tables=list(tables.losses(summary, model)))
        yield Section(f"pictures {model}", f"{model}: pictures", pictures=list(_pictures(summary, model)))
        yield Section(f"artifacts {model}", f"{model}: from the artifacts", tables=[tables.artifacts(summary, model)])
        yield Section(f"answers {model}", f"{model}: answers", tables=list(tables.answers(summary, model)))
        yield Section(f"cost {model}", f"{model}: cost", tables=[tables.costs(summary, model)])
        tried = tables.rates(summary, model)
        if tried.rows:
            yield Section(f"rates {model}", f"{model}: learning rates", tables=[tried])


def renewed(text: str, made: Sequence[Section]) -> str:
    """``text`` with every section between its markers; one that has no place yet is put at the end."""
    for section in made:
        begin, end = f"<!-- begin: {section.name} -->", f"<!-- end: {section.name} -->"
        if (text.count(begin), text.count(end)) not in ((0, 0), (1, 1)) or text.find(end) < text.find(begin):
            raise Refused(f"the markers of {section.name!r} are not a pair", f"keep one {begin} before one {end}")
        if begin not in text:
            text = f"{text.rstrip()}\n\n## {section.title}\n\n{begin}\n{end}\n"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n{_markdown(section)}{end}{rest.partition(end)[2]}"
    return text


def _markdown(section: Section) -> str:
    parts = [section.text] if section.text else []
    parts += [f"![{p.caption}]({p.stem}.svg)" for p in section.pictures]
    for table in section.tables:
        lines = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)], *table.rows]
        written = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append("\n\n".join(filter(None, (f"**{table.title}**", written, table.note))))
    return "".join(f"\n{part}\n" for part in parts) + "\n"


def _about(summary: Summary, planned: int) -> str:
    results = {**summary.results, **summary.chosen}
    steps = sorted({str(cell.steps) for cell in summary.results if cell.steps})
    versions = sorted({" ".join(f"{k} {v}" for k, v in sorted(r["tool"].items())) for r in results.values()})
    tried = f", and {len(summary.chosen)} runs to choose learning rates" if summary.chosen else ""
    states = len({r["source"] for r in summary.results.values() if "source" in r})
    return (
        f"{len(summary.results)} of {planned} cells{tried}. Steps: {', '.join(steps)}. A step is {ROWS['rows']} rows "
        f"of a task, or {ROWS['text']} windows of {WINDOW} tokens of text; the same batches in the same order for "
        f"every method of a seed, held to by their digest. Loss: mean nats per token, on {HELD_OUT['rows']} rows "
        f"(where there are so many) or {HELD_OUT['text']} windows that are never trained on; the mean over seeds ± "
        f"half their range. Answers: greedy, to the first {QUESTIONS} held-out rows. {'; '.join(versions)}; {states} "
        f"state{'' if states == 1 else 's'} of the methods' source."
    )


def _pictures(summary: Summary, model: str) -> Iterator[Picture]:
    made = {
        "bits": (figures.against_bits(summary, model), "Held-out loss against bits; bars span the seeds."),
        "loss": (figures.loss_curves(summary, model), "Training loss at 4 bits, first seed; circles: held-out loss."),
        "moved": (figures.heat_maps(summary, model), "Per cent of the codes moved, at 4 bits, first seed."),
    }
    for name, (svg, caption) in made.items():
        if svg is not None:
            yield Picture(f"{model}-{name}", caption, svg)


def _html(made: Sequence[Section]) -> str:
    environment = Environment(
        loader=PackageLoader("edgeqaf", "bench"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["inline"] = _inline
    return environment.get_template("page.html.j2").render(sections=made, style=Markup(figures.style()))


def _inline(text: str) -> Markup:
    """Bold and code of Markdown; everything else is escaped."""
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text)))
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", escaped))


def _lines(results: Mapping[Cell, Result]) -> str:
    held = store.together(results)
    cells = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in sorted(held["cells"].items()))
    return f'{{"format": {held["format"]}, "cells": {{\n{cells}\n}}}}\n'


def _require_comparable(results: Mapping[Cell, Result]) -> None:
    if mixed := mixed_models(results):
        raise Refused(f"results of {mixed[0]} are of different model files", "remove those of one of them")
    if differing := differing_batches(results):
        raise Refused(
            f"runs saw different batches: {differing[0]}", "data or tokenizer changed between them; remove the older"
        )
