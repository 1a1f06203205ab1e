"""What is held out is never trained on, every method sees the same tokens, and texts stay readable to story models."""

import re
import string

import pytest

from edgeqaf import plugins
from edgeqaf.bench.task import HELD_OUT, LONGEST, QUESTIONS, WINDOW, batches, digest, material, plain
from edgeqaf.bench.tasks.gsm8k import final_number
from edgeqaf.data import IGNORED
from edgeqaf.errors import Refused
from edgeqaf.tokenizer import Tokenizer

KNOWN = set(string.ascii_letters + string.digits + " \n.,;:'\"!?-$<>|_")
every_task = pytest.mark.parametrize("name", plugins.names("tasks"))


@pytest.fixture(scope="module")
def tokenizer(tiny_float_model):
    return Tokenizer(tiny_float_model)


@every_task
def test_nothing_held_out_is_trained_on(name, data, tokenizer):
    task = plugins.find("tasks", name)
    found = material(task, data, tokenizer)
    if task.metric is None:
        assert {tuple(e.ids) for e in found.held_out}.isdisjoint(tuple(e.ids) for e in found.train)
        return
    prompts = {row["prompt"] for row in task.read(data)[0]}
    assert prompts
    assert found.questions
    assert not [question for question in found.questions if question.prompt in prompts]


@every_task
def test_rates_are_chosen_on_rows_that_no_figure_is_of(name, data, tokenizer):
    task = plugins.find("tasks", name)
    shown = material(task, data, tokenizer)
    if len(shown.held_out) == HELD_OUT["rows" if task.metric else "text"]:
        chosen = material(task, data, tokenizer, choosing=True)
        assert {tuple(e.ids) for e in shown.held_out}.isdisjoint(tuple(e.ids) for e in chosen.held_out)
    else:  # so few rows that none is left
        with pytest.raises(Refused, match=f"{re.escape(task.title)}: .* 0 held out"):
            material(task, data, tokenizer, choosing=True)


@every_task
def test_material_has_the_sizes_it_promises(name, data, tokenizer):
    task = plugins.find("tasks", name)
    found = material(task, data, tokenizer)
    assert task.kind in ("task", "recovery", "style")
    assert 0 < len(found.held_out) <= 256
    assert len(found.questions) <= QUESTIONS
    for example in [*found.train, *found.held_out]:
        assert len(example.ids) == WINDOW if task.metric is None else len(example.ids) <= LONGEST
        assert any(label != IGNORED for label in example.labels[1:])
    assert found == material(task, data, tokenizer)


@every_task
def test_a_task_s_texts_are_in_characters_that_story_models_know(name, data):
    task = plugins.find("tasks", name)
    if task.metric:
        train, held_out = task.read(data)
        assert set("".join(row["prompt"] + row["completion"] for row in [*train, *held_out])) <= KNOWN


@every_task
def test_questions_are_words_of_the_smallest_model(name, shared):
    """Its vocabulary has no bytes to fall back on: llama.cpp cannot tokenize a character that it lacks."""
    tokenizer = Tokenizer(shared / "models" / "tinystories656k")
    (unknown,) = tokenizer.encode("^", prompt=False)[1:]
    found = material(plugins.find("tasks", name), shared, tokenizer)
    assert not [q.prompt for q in found.questions if unknown in tokenizer.encode(q.prompt, prompt=True)]


def test_the_batches_are_the_seed_s_alone_and_show_every_row_before_any_twice(data, tokenizer):
    found = material(plugins.find("tasks", "viggo"), data, tokenizer)
    stream = batches(found, 1, 20)
    assert digest(stream) == digest(batches(found, 1, 20))
    assert digest(stream) != digest(batches(found, 2, 20))
    assert digest(batches(found, 1, 10)) == digest(stream[:10])
    flat = [tuple(example.ids) for batch in stream for example in batch]
    assert {len(batch) for batch in stream} == {6}
    assert sorted(flat[: len(found.train)]) == sorted(tuple(e.ids) for e in found.train)


def test_tables_of_held_out_questions_are_not_trained_on(data):
    train, held_out = plugins.find("tasks", "wikisql").read(data)
    tables = [{row["prompt"].split("\n")[0] for row in rows} for rows in (train, held_out)]
    assert all(tables)
    assert tables[0].isdisjoint(tables[1])


@pytest.mark.parametrize(
    ("answer", "number"),
    [("7 and 8 is 15\nAnswer: 15", "15"), ("Answer: 1,250", "1250"), ("Answer: -3.5", "-3.5"), ("none", ""), ("", "")],
)
def test_the_final_number_is_the_last_one(answer, number):
    assert final_number(answer) == number


def test_signs_become_words():
    assert plain("a(b)/c=[d] + 5% é") == "a, b over c is : d; plus 5 percent "
    assert plain("Year/Place", " or ") == "Year or Place"
    assert plain("#1 @ home") == " number 1 at home"


def test_data_that_is_too_small_is_refused_with_where_it_is_from(data, tokenizer, tmp_path):
    (tmp_path / "data" / "viggo").mkdir(parents=True)
    for name in ("train", "valid"):
        (tmp_path / "data" / "viggo" / f"{name}.csv").write_text("mr,ref\na(b[c]),d\n", "utf-8")
    with pytest.raises(Refused, match="ViGGO: 1 examples to train on, 0 held out") as refused:
        material(plugins.find("tasks", "viggo"), tmp_path, tokenizer)
    assert "jjuraska/data2text-nlg" in refused.value.remedy
