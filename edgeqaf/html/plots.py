"""Plots as inline SVG: text built as an element tree, so that every name in it is escaped.

Colours are classes that the page's style sheet defines, once for light and once for dark. Equal
values give equal bytes: coordinates have one decimal, nothing depends on time or on hashing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

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
class Axis:
    """Values to pixels; ticks inside the range."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        low, high, at = (log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)


def series(index: int) -> str:
    """Classes of the index-th series: a colour, and a dash pattern of its own which grey print shows."""
    return f"s{index % COLOURS} d{index % 4}"


def swatch(index: int) -> Markup:
    """The line of a series, for the legend."""
    svg = _svg(34, 12, "swatch")
    _add(svg, "line", f"smooth {series(index)}", x1=1, y1=6, x2=33, y2=6)
    return _markup(svg)


def bar(share: float) -> Markup:
    """A horizontal bar from 0 to 1, as wide as its place."""
    svg = Element("svg", {"class": "bar", "width": "100%", "height": "12", "aria-hidden": "true"})
    _add(svg, "rect", "track", width="100%", height="12")
    _add(svg, "rect", "fill", width=f"{100 * share:.2f}%", height="12")
    return _markup(svg)


def loss_curves(curves: Sequence[Curve]) -> Markup:
    """Raw training loss, faint; smoothed, strong; held-out loss as points. Logarithmic where it falls far."""
    points = [p for c in curves for p in (*c.training, *c.held_out)]
    x = _linear([0, *(s for s, _ in points)], LEFT, WIDTH - RIGHT)
    y = _fitting([v for _, v in points], HEIGHT - BOTTOM, TOP)
    svg = _svg(WIDTH, HEIGHT, "plot", "Loss by training step")
    for tick in y.ticks:
        _add(svg, "line", "grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick))
        _text(svg, LEFT - 8, y(tick) + 4, f"{tick:g}", "end")
    for tick in (t for t in x.ticks if t == int(t)):
        _text(svg, x(tick), HEIGHT - BOTTOM + 20, f"{int(tick):,}")
    _text(svg, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, f"step (loss on a {'logarithmic' if y.log else 'linear'} scale)")
    for index, curve in enumerate(curves):
        smoothed = _smooth(curve.training)
        if smoothed != list(curve.training):
            _line(svg, curve.training, x, y, f"raw s{index % COLOURS}")
        _line(svg, smoothed, x, y, f"smooth {series(index)}")
        for step, loss in _thin(curve.held_out):
            dot = _add(svg, "circle", f"dot s{index % COLOURS}", cx=x(step), cy=y(loss), r=4)
            SubElement(dot, "title").text = f"{curve.label}, step {step:,}: held-out loss {loss:.4g}"
    return _markup(svg)


def heat_map(layers: Mapping[str, Movement], top: float) -> Markup:
    """Share of codes moved: layers down, projections across; the strongest colour stands for ``top``.

    A tensor that is not named like ``*.layers.N.PROJECTION.weight`` has no place here.
    """
    cells = {place(name): (name, m) for name, m in layers.items() if place(name)}
    rows = sorted({p[0] for p in cells if p})
    columns = sorted({p[1] for p in cells if p}, key=_column_order)
    svg = _svg(MARGIN + CELL_WIDTH * len(columns), CELL_HEIGHT * (len(rows) + 1) + 50, "heat", "Share of codes moved")
    for j, column in enumerate(columns):
        _text(svg, MARGIN + CELL_WIDTH * (j + 0.5), 20, _short(column))
    for i, row in enumerate(rows):
        top_edge = CELL_HEIGHT * (i + 1)
        _text(svg, MARGIN - 10, top_edge + 20, f"layer {row}", "end")
        for j, column in enumerate(columns):
            if (row, column) in cells:
                _cell(svg, MARGIN + CELL_WIDTH * j, top_edge, *cells[row, column], top)
    _scale(svg, CELL_HEIGHT * (len(rows) + 1) + 16, CELL_WIDTH * len(columns), top)
    return _markup(svg)


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
    _add(
        group,
        "rect",
        "cell",
        x=x + 1,
        y=y + 1,
        width=CELL_WIDTH - 2,
        height=CELL_HEIGHT - 2,
        fill_opacity=f"{strength:.3f}",
    )
    _text(group, x + CELL_WIDTH / 2, y + 20, f"{100 * m.share:.1f}", cls="on" if strength > 0.6 else "off")


def _scale(svg: Element, y: float, width: float, top: float) -> None:
    steps = 20
    for i in range(steps):
        at = MARGIN + width * i / steps
        _add(svg, "rect", "cell", x=at, y=y, width=width / steps, height=8, fill_opacity=f"{(i + 1) / steps:.3f}")
    _text(svg, MARGIN, y + 28, "0", "start")
    _text(svg, MARGIN + width, y + 28, f"{100 * top:g} per cent", "end")


def _linear(values: Sequence[float], start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    if high - low < 1e-30:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    unit = 10.0 ** floor(log10((high - low) / 4))
    step = next(unit * m for m in (1, 2, 5, 10) if (high - low) / (unit * m) <= 6)
    ticks = tuple(step * n for n in range(ceil(low / step), floor(high / step) + 1))
    return Axis(low, high, start, end, False, ticks)


def _fitting(values: Sequence[float], start: float, end: float) -> Axis:
    """A log axis for positive values that span a factor of 20, else a linear one from zero if all are positive."""
    if not values or min(values) <= 0 or max(values) / min(values) < 20:
        return _linear([*values, 0.0], start, end)
    low, high = min(values), max(values)
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    many = len(decades) > 6
    ticks = [m * 10.0**e for e in decades[:: 1 + len(decades) // 8] for m in ((1,) if many else (1, 3))]
    return Axis(low, high, start, end, True, tuple(t for t in ticks if low <= t <= high))


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
    _add(svg, "polyline", cls, points=" ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in _thin(points)))


def _svg(width: float, height: float, cls: str, label: str = "") -> Element:
    about = {"role": "img", "aria-label": label} if label else {"aria-hidden": "true"}
    return Element("svg", {"class": cls, "viewBox": f"0 0 {width} {height}", **about})


def _add(parent: Element, tag: str, cls: str, **attributes: float | str) -> Element:
    written = {
        k.replace("_", "-"): v if isinstance(v, str) else f"{v:.1f}".removesuffix(".0") for k, v in attributes.items()
    }
    return SubElement(parent, tag, {"class": cls, **written})


def _text(parent: Element, x: float, y: float, text: str, anchor: str = "middle", cls: str = "label") -> None:
    _add(parent, "text", cls, x=x, y=y, text_anchor=anchor).text = text


def _markup(svg: Element) -> Markup:
    return Markup(tostring(svg, encoding="unicode"))  # escaped by the serializer
