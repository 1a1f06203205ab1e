"""Goals judged by hand-made results, tables that hide nothing, and a page whose prose survives."""

from dataclasses import replace
from xml.etree.ElementTree import fromstring

import pytest

from edgeqaf.bench import figures, pages, store, tables
from edgeqaf.bench.goals import CODES, GOALS, LOWRANK, difference, judge, judgements
from edgeqaf.bench.summary import AGAIN, STORED, UNMERGED, Figure, Row, Summary
from edgeqaf.errors import Refused

MODEL = "tinystories656k"


@pytest.mark.parametrize(
    ("found", "within", "strict", "verdict"),
    [(-0.1, 0.0, False, "met"), (0.0, 0.0, False, "met"), (0.0001, 0.0, False, "missed"), (0.05, 0.05, False, "met"),
     (0.0501, 0.05, False, "missed"), (0.0, 0.0, True, "missed"), (-0.0001, 0.0, True, "met"),
     (None, 0.0, True, "open"), (float("nan"), 0.05, False, "missed")],
)  # fmt: skip
def test_a_difference_is_judged(found, within, strict, verdict):
    assert judge(found, within, strict) == verdict


def test_only_seeds_that_both_have_are_compared():
    assert difference(Figure({0: 2.0, 1: 9.0}), Figure({0: 1.5, 2: 0.0})) == (0.5, 1)
    assert difference(Figure({0: 2.0}), Figure({1: 2.0})) == (None, 0)
    assert difference(None, Figure({1: 2.0})) == (None, 0)


def verdicts(summary, goal, grid="q4_0", task="viggo"):
    (found,) = [j for j in judgements(summary, MODEL) if (j.goal, j.grid, j.task) == (goal, grid, task)]
    return found.verdict, found.seeds


def test_goals_are_met_and_missed_by_the_losses_there_are(results):
    losses = {
        ("lora", "float"): 2.0,
        ("lora", "requantized"): 2.03,
        ("codes", "stored"): 1.99,
        ("lowrank", "stored"): 2.06,
        ("codes-residual", "stored"): 1.98,
        ("lowrank-residual", "stored"): 2.02,
        ("lowrank+scale", "stored"): 2.02,
    }
    summary = Summary(results(losses, tasks=["viggo"]))
    found = {(goal.row.contender, goal.strict): verdicts(summary, goal) for goal in GOALS if 4 in goal.at}
    missed = {("lowrank", False), ("lowrank", True)}
    assert found.keys() == {(row.contender, strict) for row in CODES + LOWRANK for strict in (False, True)}
    assert found == {key: ("missed" if key in missed else "met", 3) for key in found}


def test_a_goal_without_results_is_open(results):
    summary = Summary(results(tasks=["viggo"], grids=["q3_0"], contenders=["codes"]))
    assert {j.verdict for j in judgements(summary, MODEL)} == {"open"}


def test_a_goal_is_judged_at_every_place_it_speaks_of(results):
    summary = Summary(results(seeds=[0]))
    places = {(j.goal, j.grid, j.task) for j in judgements(summary, MODEL)}
    assert len(places) == (2 + 2 + 3 + 3 * 5) * 6
    assert {j.seeds for j in judgements(summary, MODEL)} == {1}


def test_the_spread_is_half_the_range_of_the_seeds():
    assert str(Figure({0: 1.0, 1: 1.1, 2: 1.04})) == "1.047 ± 0.050"
    assert str(Figure({3: 2.0})) == "2.000"


def test_every_result_is_in_a_table_and_the_best_that_folds_is_bold(results):
    losses = {("codes", "stored"): 1.5, ("lora", "float"): 1.0, ("untuned", "stored"): 1.0}
    summary = Summary(results(losses, tasks=["viggo", "recovery"]))
    found = {table.title: table for table in tables.losses(summary, MODEL)}
    assert len(found) == 5  # three widths of the symmetric grids, and a float and an integer zero at 4 bits
    four = {row[0]: row[1:] for row in found["Held-out loss, 4 bits (q4_0)"].rows}
    assert four["`codes`"] == ["**1.510 ± 0.010**"] * 2
    assert four["untuned"] == ["1.000"] * 2
    assert four["LoRA r16, unmerged"] == ["1.010 ± 0.010"] * 2
    assert four["LoTA r16 as published"] == ["2.010 ± 0.010"] * 2
    assert "untuned, float32" in four
    assert "full float fine-tune, then quantized" in four


def test_rates_that_were_tried_are_shown_with_the_one_taken_and_in_no_other_table(results):
    held = results(tasks=["viggo"], contenders=["codes"], grids=["q4_0"], seeds=[0])
    (cell,) = held
    tried = {}
    for lr, loss in ((0.1, 1.25), (0.03, 1.5)):
        scores = {"stored": {"torch": {"loss": loss}}}
        tried[replace(cell, rates=(("lr", lr),), choosing=True)] = {**held[cell], "scores": scores}
    summary = Summary(held | tried)
    assert tables.rates(summary, MODEL).rows == [["`codes`", "q4_0", "task", "0.03: 1.500, 0.1: 1.250", "0.1"]]
    assert summary.results.keys() == held.keys()
    about = next(iter(pages.sections(summary, 5))).text
    assert about.startswith("1 of 5 cells, and 2 runs to choose learning rates. Steps: 300.")


def test_a_place_without_a_result_is_marked(results):
    held = results(tasks=["viggo", "home"], grids=["q4_0"], seeds=[0])
    held = {c: r for c, r in held.items() if (c.task, c.contender) != ("home", "codes")}
    (table,) = tables.losses(Summary(held), MODEL)
    assert next(row for row in table.rows if row[0] == "`codes`").count(tables.NONE) == 1


def test_artifacts_are_held_against_pytorch(results):
    table = tables.artifacts(Summary(results(tasks=["viggo"], grids=["q4_0"], seeds=[0])), MODEL)
    (row,) = [row for row in table.rows if row[0] == "q4_0"]
    assert row[2:4] == ["+0.0010", "0.0010"]
    assert row[4:] == ["0", tables.NONE, tables.NONE]


@pytest.mark.parametrize("row", [Row("lora", UNMERGED), Row("lora", AGAIN), Row("full", AGAIN), Row("codes", STORED)])
def test_forms_of_a_contender_have_titles_of_their_own(row):
    others = [Row(row.contender, form) for form in (UNMERGED, AGAIN) if form != row.form]
    assert row.title not in [other.title for other in others]


def test_the_report_is_the_same_bytes_again_and_keeps_prose(results, tmp_path):
    held = results(tasks=["viggo", "recovery"])
    written = pages.write(tmp_path, held, 999)
    before = {path.name: path.read_bytes() for path in written}
    assert pages.write(tmp_path, dict(reversed(held.items())), 999)
    assert {path.name for path in written} == {p.name for p in tmp_path.iterdir()}
    page = tmp_path / "methods.md"
    page.write_text(page.read_text("utf-8").replace("## What was run", "## Ran\n\nMy own words."), "utf-8")
    pages.write(tmp_path, held, 999)
    assert "My own words." in page.read_text("utf-8")
    assert page.read_text("utf-8").count("begin: about") == 1
    page.unlink()
    pages.write(tmp_path, held, 999)
    assert {path.name: path.read_bytes() for path in written} == before
    assert store.collect(tmp_path / "methods.json").keys() == held.keys()


def test_the_page_needs_nothing_from_elsewhere(results, tmp_path):
    pages.write(tmp_path, results(tasks=["viggo"]), 10)
    text = (tmp_path / "methods.html").read_text("utf-8")
    assert "<script" not in text
    assert "http" not in text.replace("http://www.w3.org", "")
    assert text.count("<svg") > 3


def test_pictures_are_files_that_stand_alone(results):
    summary = Summary(results(tasks=["viggo", "recovery"]))
    for make in (figures.loss_curves, figures.against_bits, figures.heat_maps):
        picture = make(summary, MODEL)
        svg = fromstring(figures.standalone(picture))
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        assert len([inner for inner in svg if inner.tag.endswith("svg")]) >= 2
    assert figures.against_bits(Summary(results(grids=["q4_0"], contenders=["codes"])), MODEL) is None


@pytest.mark.parametrize(
    "text", ["<!-- begin: about -->", "<!-- end: about --><!-- begin: about -->", "<!-- begin: about -->" * 2]
)
def test_markers_that_are_no_pair_are_refused(text):
    with pytest.raises(Refused, match="markers of 'about' are not a pair"):
        pages.renewed(text, [pages.Section("about", "")])


def test_results_that_cannot_be_compared_are_refused(results, tmp_path):
    held = results(tasks=["viggo"], grids=["q4_0"])
    cells = [cell for cell in held if cell.contender == "codes"]
    for change, says in (
        ({"model_sha256": "1"}, f"results of {MODEL} are of different model files"),
        ({"batches": "other"}, f"runs saw different batches: {MODEL}, viggo, seed 0"),
    ):
        with pytest.raises(Refused, match=says):
            pages.write(tmp_path, held | {cells[0]: held[cells[0]] | change}, 1)
    assert not list(tmp_path.iterdir())
