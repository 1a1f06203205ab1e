"""Plots as inline SVG: text built as an element tree, so that every name in it is escaped.

Colours are classes that the page's style sheet defines, once for light and once for dark. Equal
values give equal bytes: coordinates have one decimal, nothing depends on time or on hashing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from xml.etree.ElementTree import Element, SubElement

from markupsafe import Markup

from edgeqaf.html.drawing import Axis, add, canvas, fitting, linear, markup, text
from edgeqaf.movement import Movement

Point = tuple[int, float]
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")  # in the order of the forward pass
COLOURS = 6  # series classes of the style sheet; after them the dash pattern changes
MOST_POINTS = 600  # of one line; a bucket of more keeps its extremes
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 66, 24, 14, 52
CELL_WIDTH, CELL_HEIGHT, MARGIN = 76, 30, 76


@dataclass(frozen=True)
class Curve:
    """One run: (step, loss) of training, and of held-out data."""

    label: str
    training: Sequence[Point]
    held_out: Sequence[Point]


@dataclass(frozen=True)
class Mark:
    """A value measured at a place of the lower axis, and how far it spreads either way."""

    at: int
    value: float
    spread: float


def series(index: int) -> str:
    """Classes of the index-th series: a colour, and a dash pattern of its own which grey print shows."""
    return f"s{index % COLOURS} d{index % 4}"


def swatch(index: int) -> Markup:
    """The line of a series, for the legend."""
    svg = canvas(34, 12, "swatch")
    add(svg, "line", f"smooth {series(index)}", x1=1, y1=6, x2=33, y2=6)
    return markup(svg)


def bar(share: float) -> Markup:
    """A horizontal bar from 0 to 1, as wide as its place."""
    svg = Element("svg", {"class": "bar", "width": "100%", "height": "12", "aria-hidden": "true"})
    add(svg, "rect", "track", width="100%", height="12")
    add(svg, "rect", "fill", width=f"{100 * share:.2f}%", height="12")
    return markup(svg)


def loss_curves(curves: Sequence[Curve]) -> Markup:
    """Raw training loss, faint; smoothed, strong; held-out loss as points. Logarithmic where it falls far."""
    points = [p for c in curves for p in (*c.training, *c.held_out)]
    x = linear([0, *(s for s, _ in points)], LEFT, WIDTH - RIGHT)
    y = fitting([v for _, v in points], HEIGHT - BOTTOM, TOP)
    svg = canvas(WIDTH, HEIGHT, "plot", "Loss by training step")
    for tick in y.ticks:
        add(svg, "line", "grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick))
        text(svg, LEFT - 8, y(tick) + 4, f"{tick:g}", "end")
    for tick in (t for t in x.ticks if t == int(t)):
        text(svg, x(tick), HEIGHT - BOTTOM + 20, f"{int(tick):,}")
    text(svg, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, f"step (loss on a {'logarithmic' if y.log else 'linear'} scale)")
    for index, curve in enumerate(curves):
        smoothed = _smooth(curve.training)
        if smoothed != list(curve.training):
            _line(svg, curve.training, x, y, f"raw s{index % COLOURS}")
        _line(svg, smoothed, x, y, f"smooth {series(index)}")
        for step, loss in _thin(curve.held_out):
            dot = add(svg, "circle", f"dot s{index % COLOURS}", cx=x(step), cy=y(loss), r=4)
            SubElement(dot, "title").text = f"{curve.label}, step {step:,}: held-out loss {loss:.4g}"
    return markup(svg)


def marks(lines: Sequence[tuple[str, Sequence[Mark]]], across: str, up: str) -> Markup:
    """A few measured places a line, joined; a bar where there is a spread. The places are ticks of the lower axis."""
    found = [mark for _, points in lines for mark in points]
    x = Axis(min(m.at for m in found) - 0.2, max(m.at for m in found) + 0.2, LEFT, WIDTH - RIGHT, False, ())
    y = linear([m.value + end * m.spread for m in found for end in (-1, 1)], HEIGHT - BOTTOM, TOP)
    svg = canvas(WIDTH, HEIGHT, "plot", f"{up} by {across}")
    for tick in y.ticks:
        add(svg, "line", "grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick))
        text(svg, LEFT - 8, y(tick) + 4, f"{tick:.4g}", "end")
    for at in sorted({m.at for m in found}):
        text(svg, x(at), HEIGHT - BOTTOM + 20, f"{at}")
    text(svg, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, across)
    for index, (label, points) in enumerate(lines):
        _line(svg, [(m.at, m.value) for m in points], x, y, f"smooth {series(index)}")
        for m in points:
            ends = {"y1": y(m.value - m.spread), "y2": y(m.value + m.spread)}
            add(svg, "line", f"spread s{index % COLOURS}", x1=x(m.at), x2=x(m.at), **ends)
            dot = add(svg, "circle", f"dot s{index % COLOURS}", cx=x(m.at), cy=y(m.value), r=4)
            SubElement(dot, "title").text = f"{label}, {m.at} {across}: {m.value:.4g} ± {m.spread:.2g}"
    return markup(svg)


def heat_map(layers: Mapping[str, Movement], top: float) -> Markup:
    """Share of codes moved: layers down, projections across; the strongest colour stands for ``top``.

    A tensor that is not named like ``*.layers.N.PROJECTION.weight`` has no place here.
    """
    cells = {place(name): (name, m) for name, m in layers.items() if place(name)}
    rows = sorted({p[0] for p in cells if p})
    columns = sorted({p[1] for p in cells if p}, key=_column_order)
    svg = canvas(MARGIN + CELL_WIDTH * len(columns), CELL_HEIGHT * (len(rows) + 1) + 50, "heat", "Share of codes moved")
    for j, column in enumerate(columns):
        text(svg, MARGIN + CELL_WIDTH * (j + 0.5), 20, _short(column))
    for i, row in enumerate(rows):
        top_edge = CELL_HEIGHT * (i + 1)
        text(svg, MARGIN - 10, top_edge + 20, f"layer {row}", "end")
        for j, column in enumerate(columns):
            if (row, column) in cells:
                _cell(svg, MARGIN + CELL_WIDTH * j, top_edge, *cells[row, column], top)
    _scale(svg, CELL_HEIGHT * (len(rows) + 1) + 16, CELL_WIDTH * len(columns), top)
    return markup(svg)


def place(name: str) -> tuple[int, str] | None:
    """(layer, projection) of a tensor, or None for one outside the layers."""
    found = re.fullmatch(r".*?\blayers?\.(\d{1,6})\.(.+?)(?:\.weight)?", name, re.DOTALL)
    return (int(found[1]), found[2]) if found else None


def in_order(layers: Mapping[str, Movement]) -> list[tuple[str, Movement]]:
    """Tensors by layer number and in the order of the forward pass, those outside the layers first."""

    def key(name: str) -> tuple[int, tuple[int, str], str]:
        layer, projection = place(name) or (-1, "")
        return layer, _column_order(projection), name

    return [(name, layers[name]) for name in sorted(layers, key=key)]


def nice_top(shares: Sequence[float]) -> float:
    """The least of 1, 2, 5, 10, ... 100 per cent in steps of ten that no share exceeds."""
    most = max(shares, default=0.0)
    return next((t for t in (0.01, 0.02, 0.05, *(n / 10 for n in range(1, 10))) if t >= most), 1.0)


def _short(column: str) -> str:
    return column.rpartition(".")[2].removesuffix("_proj")


def _column_order(column: str) -> tuple[int, str]:
    short = _short(column)
    return (PROJECTIONS.index(short) if short in PROJECTIONS else len(PROJECTIONS), column)


def _cell(svg: Element, x: float, y: float, name: str, m: Movement, top: float) -> None:
    strength = min(m.share / top, 1.0)
    group = SubElement(svg, "g")
    zeros = f"; {m.zeros_moved:,} of {m.zeros:,} zeros" if m.zeros else ""
    SubElement(group, "title").text = f"{name}: {m.moved:,} of {m.weights:,} codes moved{zeros}"
    add(
        group,
        "rect",
        "cell",
        x=x + 1,
        y=y + 1,
        width=CELL_WIDTH - 2,
        height=CELL_HEIGHT - 2,
        fill_opacity=f"{strength:.3f}",
    )
    text(group, x + CELL_WIDTH / 2, y + 20, f"{100 * m.share:.1f}", cls="on" if strength > 0.6 else "off")


def _scale(svg: Element, y: float, width: float, top: float) -> None:
    steps = 20
    for i in range(steps):
        at = MARGIN + width * i / steps
        add(svg, "rect", "cell", x=at, y=y, width=width / steps, height=8, fill_opacity=f"{(i + 1) / steps:.3f}")
    text(svg, MARGIN, y + 28, "0", "start")
    text(svg, MARGIN + width, y + 28, f"{100 * top:g} per cent", "end")


def _smooth(points: Sequence[Point]) -> list[Point]:
    """Centred mean over a twentieth of the run, narrower at its ends."""
    half, values = len(points) // 40, [v for _, v in points]
    reach = [min(half, i, len(points) - 1 - i) for i in range(len(points))]
    return [
        (s, sum(values[i - r : i + r + 1]) / (2 * r + 1))
        for i, ((s, _), r) in enumerate(zip(points, reach, strict=True))
    ]


def _thin(points: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS` points: the lowest and the highest of each bucket of neighbours."""
    size = ceil(2 * len(points) / MOST_POINTS)
    if size <= 2:
        return list(points)
    buckets = [points[i : i + size] for i in range(0, len(points), size)]
    value: Callable[[Point], float] = lambda p: p[1]  # noqa: E731
    return [p for b in buckets for p in sorted({min(b, key=value), max(b, key=value)})]


def _line(svg: Element, points: Sequence[Point], x: Axis, y: Axis, cls: str) -> None:
    add(svg, "polyline", cls, points=" ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in _thin(points)))
