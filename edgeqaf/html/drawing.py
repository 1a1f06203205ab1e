"""Scales, and SVG built as an element tree, so that every name in it is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup


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


def linear(values: Sequence[float], start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    if high - low < 1e-30:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    unit = 10.0 ** floor(log10((high - low) / 4))
    step = next(unit * m for m in (1, 2, 5, 10) if (high - low) / (unit * m) <= 6)
    ticks = tuple(step * n for n in range(ceil(low / step), floor(high / step) + 1))
    return Axis(low, high, start, end, False, ticks)


def fitting(values: Sequence[float], start: float, end: float) -> Axis:
    """A log axis for positive values that span a factor of 20, else a linear one."""
    if not values or min(values) <= 0 or max(values) / min(values) < 20:
        return linear(values or [0.0], start, end)
    low, high = min(values), max(values)
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    many = len(decades) > 6
    ticks = [m * 10.0**e for e in decades[:: 1 + len(decades) // 8] for m in ((1,) if many else (1, 3))]
    return Axis(low, high, start, end, True, tuple(t for t in ticks if low <= t <= high))


def canvas(width: float, height: float, cls: str, label: str = "") -> Element:
    about = {"role": "img", "aria-label": label} if label else {"aria-hidden": "true"}
    return Element("svg", {"class": cls, "viewBox": f"0 0 {width} {height}", **about})


def add(parent: Element, tag: str, cls: str, **attributes: float | str) -> Element:
    written = {
        k.replace("_", "-"): v if isinstance(v, str) else f"{v:.1f}".removesuffix(".0") for k, v in attributes.items()
    }
    return SubElement(parent, tag, {"class": cls, **written})


def text(parent: Element, x: float, y: float, text: str, anchor: str = "middle", cls: str = "label") -> None:
    add(parent, "text", cls, x=x, y=y, text_anchor=anchor).text = text


def markup(svg: Element) -> Markup:
    return Markup(tostring(svg, encoding="unicode"))  # escaped by the serializer
