"""The demo's data: the same every time, short, plain, and fair (the test asks what training never shows)."""

import importlib.util
import json
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
from tokenizers import Tokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPT = EXAMPLES / "home_assistant.py"
Row = dict[str, str]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("home_assistant", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


assistant = load()


@pytest.fixture(scope="module")
def train() -> list[Row]:
    return list(assistant.rows(False, 2000, 0))


@pytest.fixture(scope="module")
def test() -> list[Row]:
    return list(assistant.rows(True, 300, 0))


def commands(rows: list[Row]) -> Iterator[list[str]]:
    for row in rows:
        for command in row["completion"].split(" then "):
            yield command.split("; ")


def test_the_script_writes_the_same_files_again(tmp_path: Path, train: list[Row], test: list[Row]) -> None:
    for name in ("one", "two"):
        run = [sys.executable, str(SCRIPT), "-o", str(tmp_path / name)]
        subprocess.run(run, check=True, capture_output=True, timeout=60)
    for name, rows in (("train.jsonl", train), ("test.jsonl", test)):
        text = (tmp_path / "one" / name).read_bytes()
        assert text == (tmp_path / "two" / name).read_bytes()
        assert [json.loads(line) for line in text.splitlines()] == rows


def test_a_seed_changes_the_rows_but_not_the_split(train: list[Row]) -> None:
    other = list(assistant.rows(False, 2000, 1))
    assert other != train
    assert not {tuple(c[:3]) for c in commands(other)} & {c.combination for c in assistant.combinations(True)}


def test_training_never_shows_what_the_test_asks(train: list[Row], test: list[Row]) -> None:
    shown, asked = ({tuple(c[:3]) for c in commands(rows)} for rows in (train, test))
    assert not shown & asked
    assert len(asked) > 60
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in test}


def test_training_shows_each_part_by_itself(train: list[Row], test: list[Row]) -> None:
    for part, known in ((0, assistant.ACTIONS), (1, assistant.DEVICES), (2, assistant.ROOMS)):
        assert {c[part] for c in commands(train)} == set(known)
    shown, asked = ({(c[0], c[1]) for c in commands(rows)} for rows in (train, test))
    assert shown == {(action, device) for action, devices in assistant.ACTIONS.items() for device in devices} >= asked


def test_training_shows_every_phrasing_and_synonym(train: list[Row]) -> None:
    spoken = "\n".join(f" {row['prompt']} " for row in train)
    for names in (*assistant.ROOMS.values(), *assistant.DEVICES.values()):
        assert all(f" {name} " in spoken or f" {name}," in spoken for name in names)
    for templates in assistant.PHRASINGS.values():
        for template in templates:
            frame = max(template.replace("}", "{").split("{"), key=len).strip()
            assert frame in spoken, template


def test_enough_to_choose_from() -> None:
    assert (len(assistant.ROOMS), len(assistant.DEVICES)) == (12, 14)
    assert sum(map(len, assistant.PHRASINGS.values())) >= 25
    assert len({t for templates in assistant.PHRASINGS.values() for t in templates}) == sum(
        map(len, assistant.PHRASINGS.values())
    )


def test_rows_are_short_and_plain(train: list[Row], test: list[Row]) -> None:
    tokenizer = Tokenizer.from_file(str(EXAMPLES / "storyteller-6m" / "tokenizer.json"))
    plain = set(string.ascii_letters + string.digits + " ,;:'")
    for row in [*train, *test]:
        assert set(row) == {"prompt", "completion"}
        assert set(row["prompt"] + row["completion"]) <= plain
        assert len(tokenizer.encode(row["prompt"]).ids) <= 40
        assert len(tokenizer.encode(row["completion"]).ids) <= 40


def test_about_a_fifth_of_the_rows_ask_for_two_things(train: list[Row]) -> None:
    assert 0.15 < sum(" then " in row["completion"] for row in train) / len(train) < 0.25


@pytest.mark.parametrize(
    ("hour", "minute", "spoken"),
    [
        (7, 0, ["7", "seven", "seven o'clock"]),
        (7, 15, ["7:15", "seven fifteen", "quarter past seven"]),
        (7, 30, ["7:30", "seven thirty", "half past seven"]),
        (9, 45, ["9:45", "nine forty five", "quarter to ten"]),
    ],
)
def test_the_clock_by_hand(hour: int, minute: int, spoken: list[str]) -> None:
    assert assistant.clock(hour, minute) == spoken


def test_numbers_by_hand() -> None:
    assert [assistant.in_words(n) for n in (5, 12, 20, 21, 90)] == ["five", "twelve", "twenty", "twenty one", "ninety"]
    assert {assistant.spoken_number(240, Random(seed)) for seed in range(20)} == {"240", "two hundred and forty"}


def test_a_slip_leads_back_to_one_word_only() -> None:
    random, text = Random(0), "close the curtains in the kitchen for me"
    seen = {assistant.mistype(text, random) for _ in range(200)} - {text}
    assert len(seen) > 10
    for slipped in seen:
        wrong = [(a, b) for a, b in zip(text.split(), slipped.split(), strict=True) if a != b]
        assert len(wrong) == 1
        word, slip = wrong[0]
        assert slip not in assistant.LEXICON
        assert [w for w in sorted(assistant.LEXICON) if slip in assistant.slips(w)] == [word]
