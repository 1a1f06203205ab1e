"""What every page has in common: how a template becomes text, and the marks of verdicts and rungs.

A page runs nothing and loads nothing; whatever came from a file is escaped. The same values give the same bytes.
"""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from edgeqaf import __version__
from edgeqaf.report import GOLDEN, RUNGS, SETTINGS, Verdict

SYMBOLS = {
    Verdict.EXACT: "=", Verdict.BOUNDED: "≈", Verdict.DIFFERENT: "≠", Verdict.REFUSED: "✕", Verdict.ABSENT: "–",
}  # fmt: skip
RUNG_NAMES = {
    **dict(zip(RUNGS, ("file", "weights", "kernels", "layers", "logits"), strict=True)),
    GOLDEN: "",
    SETTINGS: "",
}


def fill(template: str, filters: dict[str, Any], **values: Any) -> str:
    """The template as text. Invisible and unpaired characters are replaced, so that no name can disguise itself."""
    environment = Environment(
        loader=PackageLoader("edgeqaf", "html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"n": "{:,}".format, **filters}
    environment.globals |= {"SYMBOLS": SYMBOLS, "RUNG_NAMES": RUNG_NAMES, "version": __version__, **values}
    text = environment.get_template(template).render()
    return text.translate({ord(c): 0xFFFD for c in set(text) if not (c.isprintable() or c == "\n")})
