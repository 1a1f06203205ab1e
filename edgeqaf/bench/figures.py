"""The report's plots, several to a picture: loss curves, quality against bits, codes moved layer by layer."""

from collections.abc import Sequence
from importlib import resources
from xml.etree.ElementTree import Element, SubElement, fromstring

from markupsafe import Markup

from edgeqaf import plugins
from edgeqaf.bench.contenders import FAMILIES, bits
from edgeqaf.bench.summary import AGAIN, STORED, UNMERGED, Row, Summary
from edgeqaf.html import plots
from edgeqaf.html.drawing import add, canvas, markup, text
from edgeqaf.movement import Movement

FOLLOWED = (
    Row("lora", UNMERGED), Row("lora", AGAIN), Row("codes", STORED), Row("lowrank", STORED),
    Row("lowrank+scale", STORED), Row("scale", STORED), Row("lota", STORED), Row("full", UNMERGED),
)  # fmt: skip
CURVES = tuple(row for row in FOLLOWED if row.form != AGAIN)
COLUMNS, GAP, TITLE, LEGEND = 2, 16, 26, 22
MOST_HEATS = 4


def style() -> str:
    """The style sheet of these plots, for light and for dark."""
    return resources.files("edgeqaf.bench").joinpath("plots.css").read_text("utf-8")


def loss_curves(summary: Summary, model: str) -> Markup | None:
    """Training loss and held-out loss by step, a panel for each task, at 4 bits and the first seed."""
    panels = []
    for task in summary.present("task"):
        curves = []
        for row in CURVES:
            grid = "float32" if row.contender == "full" else "q4_0"
            found = summary.cells(model=model, task=task, contender=row.contender, grid=grid, seed=0)
            of = found[0][1] if found else {}
            training, held_out = ([(int(s), float(v)) for s, v in of.get(k, ())] for k in ("training", "held_out"))
            curves.append(plots.Curve(row.title, training, held_out))
        if any(curve.training for curve in curves):
            panels.append((plugins.find("tasks", task).title, plots.loss_curves(curves)))
    return _picture("Loss by step", panels, [row.title for row in CURVES]) if panels else None


def against_bits(summary: Summary, model: str) -> Markup | None:
    """Held-out loss at 2, 3 and 4 bits, a panel for each task; bars span the seeds."""
    panels = []
    for task in summary.present("task"):
        lines = []
        for row in FOLLOWED:
            found = {bits(grid): summary.figure(model, task, grid, row) for grid in FAMILIES["symmetric"]}
            points = [plots.Mark(int(b), f.mean, f.spread) for b, f in sorted(found.items()) if b and f]
            lines.append((row.title, points))
        if any(len(points) > 1 for _, points in lines):
            panels.append((plugins.find("tasks", task).title, plots.marks(lines, "bits", "Held-out loss")))
    return _picture("Held-out loss by bits", panels, [row.title for row in FOLLOWED]) if panels else None


def heat_maps(summary: Summary, model: str) -> Markup | None:
    """Codes moved by layer, a panel for each of a few runs at 4 bits."""
    found = []
    for contender in ("codes", "lowrank"):
        for task in ("recovery", "viggo"):
            cells = summary.cells(model=model, task=task, contender=contender, grid="q4_0", seed=0)
            found += [(f"{contender}, {plugins.find('tasks', task).title}", _layers(r["layers"]))
                      for _, r in cells if "layers" in r]  # fmt: skip
    top = plots.nice_top([m.share for _, layers in found for m in layers.values()])
    panels = [(title, plots.heat_map(layers, top)) for title, layers in found[:MOST_HEATS]]
    return _picture("Codes moved by layer", panels, []) if panels else None


def standalone(picture: Markup) -> str:
    """A picture as a file of its own."""
    svg = fromstring(str(picture))
    svg.set("xmlns", "http://www.w3.org/2000/svg")
    SubElement(svg, "style").text = style()
    return str(markup(svg)) + "\n"


def _layers(held: dict[str, Sequence[int]]) -> dict[str, Movement]:
    names = ("weights", "moved", "zeros", "zeros_moved", "scales", "scales_moved")
    return {layer: Movement(**dict(zip(names, counts, strict=True))) for layer, counts in held.items()}


def _picture(label: str, panels: Sequence[tuple[str, Markup]], legend: Sequence[str]) -> Markup:
    """Panels in two columns under a legend, each scaled to the width of its column."""
    inner = [fromstring(str(panel)) for _, panel in panels]
    boxes = [[float(x) for x in str(svg.get("viewBox")).split()[2:]] for svg in inner]
    width = max(w for w, _ in boxes)
    height = max(h * width / w for w, h in boxes) + TITLE
    top = LEGEND * (-(-len(legend) // COLUMNS)) + GAP
    down = -(-len(panels) // COLUMNS)
    whole = canvas(COLUMNS * width + GAP, top + down * (height + GAP), "plot", label)
    _legend(whole, legend, width + GAP)
    for i, ((title, _), svg) in enumerate(zip(panels, inner, strict=True)):
        x, y = (i % COLUMNS) * (width + GAP), top + (i // COLUMNS) * (height + GAP)
        text(whole, x + width / 2, y + 16, title, cls="title")
        for key, value in {"x": x, "y": y + TITLE, "width": width, "height": height - TITLE}.items():
            svg.set(key, f"{value:.1f}")
        svg.set("preserveAspectRatio", "xMidYMin meet")
        whole.append(svg)
    return markup(whole)


def _legend(whole: Element, names: Sequence[str], column: float) -> None:
    for i, name in enumerate(names):
        x, y = (i % COLUMNS) * column + 20, LEGEND * (i // COLUMNS) + 16
        add(whole, "line", f"smooth {plots.series(i)}", x1=x, x2=x + 32, y1=y - 4, y2=y - 4)
        text(whole, x + 40, y, name.replace("`", ""), "start", "title")
