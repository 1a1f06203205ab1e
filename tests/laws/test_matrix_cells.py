"""Cells of the matrix: what they amount to, whatever is in them; and the page, whatever the cells."""

import dataclasses
import itertools
from html.parser import HTMLParser

import pytest

from edgeqaf import plugins
from edgeqaf.html import Tone
from edgeqaf.report import SETTINGS, Check, Verdict
from runtime_tests.matrix import families, render
from runtime_tests.matrix.cells import ASKED, Cell, Column, Finding, Matrix, Row, State, lettered
from runtime_tests.matrix.climb import row_of
from runtime_tests.matrix.plan import Plan

ROW = Row("PyTorch", "torch_cpu", "float32", "torch 0")
COLUMN = Column("ab" * 32, "model", ("model",), 64, ("q4_0",))


def check(rung: str, verdict: Verdict, **more) -> Check:
    compared = 0 if verdict in (Verdict.ABSENT, Verdict.REFUSED) else 8
    return Check(rung, "torch_cpu float32 on gguf", verdict, 1, compared, **more)


def cell(*verdicts: Verdict | None) -> Cell:
    """One check a rung, in order; none where the verdict is None."""
    found = [check(rung, v) for rung, v in zip(ASKED, verdicts, strict=False) if v]
    return Cell(tuple(Finding(c, "model") for c in found))


def matrix(*cells: Cell) -> Matrix:
    """A column of cells, each in a row of its own."""
    rows = [Row("PyTorch", "torch_cpu", f"way {i}", "torch 0") for i in range(len(cells))]
    own = {(row, COLUMN): one for row, one in zip(rows, cells, strict=True)}
    return Matrix(rows, [COLUMN], {COLUMN: Cell()}, own, {"date": "today"})


class Cells(HTMLParser):
    """The classes of each cell of the table, and of all within it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[tuple[set[str], set[str]]] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        classes = set((dict(attrs).get("class") or "").split())
        if tag == "td":
            self._inside = "cell" in classes
            if self._inside:
                self.cells.append((classes, set()))
        elif self._inside:
            self.cells[-1][1].update(classes)

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "td"


ALL = list(itertools.product((None, *Verdict), repeat=len(ASKED)))


def test_a_cell_is_exact_only_where_everything_that_was_asked_is():
    for verdicts in ALL:
        given = {v for v in verdicts if v}
        state = cell(*verdicts).state
        assert (state is State.EXACT) == (given == {Verdict.EXACT}), verdicts
        assert (state is State.NOT_OFFERED) == (not given), verdicts
        assert (state is State.ABSENT) == (given == {Verdict.ABSENT}), verdicts
        assert (state in (State.DIFFERENT, State.REFUSED)) == bool(given & {Verdict.DIFFERENT, Verdict.REFUSED})
        assert (state is State.PARTLY) <= (Verdict.ABSENT in given), verdicts


def test_no_cell_reaches_past_a_rung_that_was_not_climbed():
    for verdicts in ALL:
        one = cell(*verdicts)
        for reached, accepted in ((one.reached, ("exact", "bounded")), (one.exact_to, ("exact",))):
            below = verdicts[: ASKED.index(reached) + 1] if reached else ()
            assert all(v is None or v.value in accepted for v in below), verdicts
        assert not one.reached or one.at(one.reached)
    assert cell(Verdict.EXACT, Verdict.EXACT, None, Verdict.BOUNDED).reached == "R4"
    assert cell(Verdict.EXACT, Verdict.EXACT, None, Verdict.BOUNDED).exact_to == "R2"
    assert cell(Verdict.ABSENT).reached == ""


def test_the_page_shows_each_cell_as_what_it_is():
    """Nothing that is absent, refused, different or not offered is drawn in the colour of what is exact."""
    cells = [cell(*verdicts) for verdicts in ALL]
    drawn = Cells(render.page(matrix(*cells))).cells
    assert len(drawn) == len(cells) + 1  # and that of the files
    for one, (outer, inner) in zip(cells, drawn[1:], strict=True):
        verdicts = {f.check.verdict.value for f in one.findings}
        named = {state.name.lower() for state in State}
        if one.state is State.NOT_OFFERED:
            assert (outer, inner & named) == ({"cell", "none"}, set())
            continue
        assert outer == {"cell", f"in-{one.state.name.lower()}"}
        assert {v.value for v in Verdict} & inner == verdicts


def test_the_sentence_counts_every_cell_and_its_tone_is_no_better_than_the_worst():
    exact, absent, wrong = cell(Verdict.EXACT), cell(Verdict.ABSENT), cell(Verdict.EXACT, Verdict.DIFFERENT)
    assert render.tone(matrix(exact, absent)) is Tone.PROVEN
    assert render.tone(matrix(absent, Cell())) is Tone.OPEN
    assert render.tone(matrix(exact, wrong)) is Tone.FAILED
    said = render.sentence(matrix(exact, exact, absent, Cell()))
    assert (
        said == "1 model in 4 ways of running it: 2 exact, 1 absent, 1 not offered. "
        "Of those that are there, bits are equal: weights in 2 of 2."
    )
    assert not render.as_json(matrix(absent))["passed"]
    assert render.as_json(matrix(exact))["cells"]["exact"] == 1


def test_two_checks_of_a_rung_are_two_marks_and_a_second_folder_repeats_none():
    both = [check("R4", Verdict.EXACT), check("R4", Verdict.BOUNDED)]
    one = Cell(tuple(Finding(c, "a") for c in both))
    assert [c.verdict for c in one.marks("R4")] == [Verdict.EXACT, Verdict.BOUNDED]
    assert render.marks(one, matrix(one).widths) == "· · · =≈ ·"
    assert render.marks(cell(*[Verdict.EXACT] * 4), matrix(one).widths) == "= = = =  ·"
    again = Cell((*one.findings, *(Finding(c, "b") for c in (*both, check("R4", Verdict.DIFFERENT)))))
    assert [c.verdict for c in again.marks("R4")] == [Verdict.EXACT, Verdict.BOUNDED, Verdict.DIFFERENT]


def test_letters_are_shared_by_equal_logits_and_by_nothing_else():
    digests = ["x", "y", "x", "", "z", "y", "x"]
    found = lettered(Cell((Finding(check("R4", Verdict.BOUNDED), "model", d),)) for d in digests)
    assert [c.letter for c in found] == ["A", "B", "A", "", "", "B", "A"]
    pairs = [f"{i}" for i in range(30) for _ in range(2)]
    many = lettered(Cell((Finding(check("R4", Verdict.EXACT), "model", d),)) for d in pairs)
    assert [c.letter for c in many[50:56]] == ["Z", "Z", "AA", "AA", "AB", "AB"]


def test_totals_keep_what_must_be_equal_apart_from_what_is_bounded():
    found = [
        check("R1", Verdict.EXACT), check("R2", Verdict.DIFFERENT, differing=3),
        check("R4", Verdict.BOUNDED, differing=5, unit="logits"), check(SETTINGS, Verdict.BOUNDED, unit="settings"),
    ]  # fmt: skip
    totals = matrix(Cell(tuple(Finding(c, "model") for c in found))).totals
    assert dict(totals.compared) == {"weights": 16, "outputs": 0, "logits": 8, "settings": 8}
    assert (totals.differing, totals.bounded) == (3, 5)


def test_the_page_loads_and_runs_nothing_and_no_name_is_markup():
    row = dataclasses.replace(ROW, configuration="<script>alert(1)</script>")
    found = Cell((Finding(check("R1", Verdict.REFUSED, detail='<img src="x">'), "model"),))
    page = render.page(Matrix([row], [COLUMN], {COLUMN: Cell()}, {(row, COLUMN): found}))
    for text in ("http:", "https:", "<script", "javascript", "<img", "href", "url(", "@import"):
        assert text not in page
    assert "&lt;script&gt;" in page


def test_a_check_has_the_row_of_its_job_whatever_it_calls_itself():
    rows = {name: Row("x", *name.split()[:2]) for name in ("a plain on gguf", "a repack on gguf", "b off on onnx")}
    asked = Plan([], list(rows.values()), {}, {}, rows)
    for name, row in rows.items():
        assert row_of(name, asked) is row
    assert row_of("a on gguf", asked) is rows["a plain on gguf"]
    assert row_of("b before and after merge, on onnx", asked) is rows["b off on onnx"]


@pytest.mark.parametrize("runtime", plugins.names("runtimes"))
def test_every_runtime_has_a_heading(runtime):
    for configuration in plugins.find("runtimes", runtime).configurations:
        assert families.family(runtime, configuration.name) in families.ORDER[:-1]
    assert families.family("unheard_of", "plain") == "Others"
