"""Keys that stay what they are, plans without gaps or repeats, and every request that is refused."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from edgeqaf import plugins
from edgeqaf.bench import store
from edgeqaf.bench.cell import Cell, cell_of
from edgeqaf.bench.contenders import CONTENDERS, FAMILIES, bits, family
from edgeqaf.bench.places import Places, models_of, require_data
from edgeqaf.bench.plans import MODELS, PLANS, select
from edgeqaf.bench.rates import KINDS, OF_MODEL, RATES, rates_of
from edgeqaf.bench.runner import require_runtimes
from edgeqaf.errors import Refused, RuntimeAbsent, UsageError
from edgeqaf.method import method_of
from edgeqaf.protocols import RuntimeOptions

CELL = Cell("tinystories656k", "viggo", "q4_0", "lowrank+scale", (("lr", 0.1), ("scale.lr", 0.01)), 2, 300)


def test_keys_are_what_they_were():
    assert CELL.key == "tinystories656k.viggo.q4_0.lowrank+scale@lr=0.1@scale.lr=0.01.seed2.steps300"
    assert replace(CELL, choosing=True, rates=()).key == (
        "tinystories656k.viggo.q4_0.lowrank+scale.seed2.steps300.choosing"
    )


def test_every_cell_has_a_key_of_its_own_that_is_a_file_name():
    cells = [cell for plan in PLANS for cell in select(plan, MODELS)]
    keys = {cell: cell.key for cell in cells}
    assert len(set(keys.values())) == len(keys)
    assert all(Path(f"{key}.json").name == f"{key}.json" and len(key) < 200 for key in keys.values())


def test_a_cell_comes_back_from_its_record():
    for cell in select("full", MODELS)[::50]:
        assert cell_of(json.loads(json.dumps(cell.record()))) == cell


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_is_a_method_with_those_options_and_rates(name):
    contender = CONTENDERS[name]
    assert contender.grids
    rates = [of for of in (RATES.get(name), *(model.get(name) for model in OF_MODEL.values())) if of]
    assert bool(rates) == (name != "untuned" and contender.method != "lota")
    for of in rates:
        for kind, width in product(KINDS, (4, 3, 2)):
            assert dict(of.of(kind, width))["lr"] in of.tried or of.tried_for not in ("", kind)
            if contender.method:
                method_of(contender.method, {**contender.options, **dict(of.of(kind, width))})
    if contender.method:
        method_of(contender.method, contender.options)


def test_every_lossless_method_of_the_product_is_a_contender():
    methods = {contender.method for contender in CONTENDERS.values()}
    assert set(plugins.names("adapters")) <= methods


def test_the_grids_are_the_product_s():
    for name, grids in FAMILIES.items():
        for i, grid in enumerate(grids):
            if name != "float":
                assert plugins.find("grids", grid).bits == bits(grid) == 4 - i


def test_the_main_plan_is_every_method_on_every_task_at_every_width_for_three_seeds():
    cells = select("main", MODELS)
    symmetric = {(c.task, c.grid, c.seed) for c in cells if (c.model, c.contender) == (MODELS[0], "lota-paper")}
    assert symmetric == {(t, g, s) for t in plugins.names("tasks") for g in FAMILIES["symmetric"] for s in range(3)}
    assert {c.contender for c in cells if c.model == MODELS[0]} == set(CONTENDERS)
    others = {(c.grid, c.seed) for c in cells if c.model == MODELS[1] and c.contender in ("lora", "codes", "lowrank")}
    assert others == {("q4_0", 0)}


def test_what_tells_most_comes_first():
    cells = select("main", MODELS[:1])
    leaders = [c for c in cells if c.contender in ("lora", "codes", "lowrank")]
    assert {c.grid for c in leaders[:18]} == {"q4_0"}
    assert [c.seed for c in leaders] == sorted(c.seed for c in leaders)
    assert {c.contender for c in cells[:6]} >= {"untuned", "full"}


def test_untuned_is_measured_once_and_trained_never():
    cells = [c for c in select("full", MODELS) if c.contender == "untuned"]
    assert {(c.seed, c.steps) for c in cells} == {(0, 0)}
    assert len({(c.model, c.task, c.grid) for c in cells}) == len(cells)


def test_the_rates_plan_tries_what_the_table_says_on_rows_of_its_own():
    cells = select("rates", MODELS, contenders=["lora"])
    assert all(cell.choosing for cell in cells)
    for model in MODELS:
        tried = {dict(cell.rates)["lr"] for cell in cells if cell.model == model}
        assert tried == set(rates_of(model, "lora").tried)


def test_narrow_grids_have_rates_of_their_own_and_those_are_tried_there():
    assert (
        rates_of(MODELS[0], "lowrank").of("recovery", 3)
        == (("lr", 0.015),)
        != rates_of(MODELS[0], "lowrank").of("recovery")
    )
    kept = {(c.task, c.grid) for c in select("rates", MODELS[:1], contenders=["lowrank"])}
    assert kept == set(product(("viggo", "shakespeare", "recovery"), FAMILIES["symmetric"]))
    residual = {(c.task, c.grid) for c in select("rates", MODELS[:1], contenders=["lowrank-residual"])}
    assert kept - residual == {("viggo", "q3_0"), ("shakespeare", "q3_0")}
    main = select("main", MODELS[:1], contenders=["lowrank"], tasks=["recovery"], seeds=[0])
    assert {c.grid: dict(c.rates)["lr"] for c in main} == {"q4_0": 0.03, "q3_0": 0.015, "q2_0": 0.015}


def test_steps_can_be_set_where_there_are_any():
    cells = select("quick", MODELS[:1], steps=7)
    assert {cell.steps for cell in cells} == {0, 7}


@pytest.mark.parametrize(
    ("selection", "says"),
    [({"plan": "slow"}, "unknown plan 'slow'"), ({"grids": ["q5_0"]}, "no grid 'q5_0'"),
     ({"contenders": ["dora"]}, "no method 'dora'"), ({"tasks": ["vigo"]}, "unknown task 'vigo'"),
     ({"seeds": [9]}, "the plan main has no cell of 9")],
)  # fmt: skip
def test_a_selection_of_what_is_not_there_is_refused(selection, says):
    with pytest.raises(UsageError) as refused:
        select(selection.pop("plan", "main"), MODELS, **selection)
    assert says in refused.value.cause
    assert refused.value.remedy


def test_a_grid_without_contenders_has_no_family():
    with pytest.raises(UsageError, match="no grid 'q8_0'"):
        family("q8_0")


def test_a_model_is_found_by_name_or_folder_and_refused_by_both(tmp_path, tiny_float_model):
    assert models_of([str(tiny_float_model)], tmp_path) == {tiny_float_model.name: tiny_float_model}
    assert models_of(["storyteller-6m"], tmp_path)["storyteller-6m"].name == "storyteller-6m"
    with pytest.raises(Refused, match="no model tinystories656k: no config") as refused:
        models_of(["tinystories656k"], tmp_path)
    assert "656,000 parameters" in refused.value.remedy
    with pytest.raises(Refused, match=f"are both called {tiny_float_model.name}"):
        models_of([str(tiny_float_model), f"{tiny_float_model}/"], tmp_path)


@pytest.mark.parametrize("task", [t for t in plugins.names("tasks") if t != "home"])
def test_missing_data_is_named_with_where_it_is_from(task, tmp_path):
    known = plugins.find("tasks", task)
    with pytest.raises(Refused, match=f"task {task}: .*{known.needs[0]}") as refused:
        require_data([task], tmp_path)
    assert known.source in refused.value.remedy


def test_a_missing_runtime_is_refused_before_any_work(tmp_path):
    places = Places(tmp_path, {}, tmp_path, RuntimeOptions(tmp_path))
    with pytest.raises(RuntimeAbsent, match="llama_cpp is absent"):
        require_runtimes(places)


def test_two_benches_do_not_share_a_folder(tmp_path):
    (tmp_path / "scratch" / "left").mkdir(parents=True)
    with store.claimed(tmp_path):
        assert not (tmp_path / "scratch").exists()
        with pytest.raises(UsageError, match=f"another bench is at work in {tmp_path}"), store.claimed(tmp_path):
            pass
    with store.claimed(tmp_path):
        pass


def test_a_result_is_kept_whole_and_never_replaced(tmp_path):
    store.save(tmp_path, CELL, {"scores": {"stored": {}}})
    store.save(tmp_path, CELL, {"scores": {"other": {}}})
    assert store.load(store.file_of(tmp_path, CELL)) == (CELL, {"scores": {"stored": {}}})
    assert store.done(tmp_path, [CELL, replace(CELL, seed=1)]) == {CELL: {"scores": {"stored": {}}}}
    assert [p.name for p in tmp_path.iterdir()] == [f"{CELL.key}.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1, "cell": {}, "scores": {}}',
     json.dumps({"format": 1, "cell": replace(CELL, seed=1).record(), "scores": {}}),
     json.dumps({"format": 1, "cell": CELL.record() | {"size": 1}, "scores": {}}),
     json.dumps({"format": 1, "cell": CELL.record(), "scores": []})],
)  # fmt: skip
def test_a_damaged_result_is_refused_by_its_file(text, tmp_path):
    file = store.file_of(tmp_path, CELL)
    file.write_text(text, "utf-8")
    with pytest.raises(Refused, match="seed2"):
        store.load(file)


def test_results_together_are_collected_again_and_others_refused(tmp_path):
    held = {CELL: {"scores": {}}, replace(CELL, seed=0): {"scores": {"stored": {}}}}
    file = tmp_path / "methods.json"
    file.write_text(json.dumps(store.together(held)), "utf-8")
    assert store.collect(file) == held
    file.write_text('{"format": 1}', "utf-8")
    with pytest.raises(Refused, match=f"{file} holds no cells"):
        store.collect(file)
    file.write_text(json.dumps({"cells": {"other": {"format": 1, "cell": CELL.record(), "scores": {}}}}), "utf-8")
    with pytest.raises(Refused, match="no result of the cell other"):
        store.collect(file)
