"""Goldens as values: what changes is seen and told apart, what is not known is absent, what is damaged is refused."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeqaf.digest import merkle_root
from edgeqaf.errors import Refused, UsageError
from edgeqaf.jsonfile import write_json
from edgeqaf.report import Check, Difference, Verdict
from runtime_tests.golden import comparison, file
from runtime_tests.golden.file import Entry, Golden, Key
from runtime_tests.golden.observation import BATCHES, activations

NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")
KEY = Key("onnxruntime", "fused level 4", "onnx", "1.31.1", "Linux x86_64: avx avx2", "1", "0" * 16)


def digest(number: int) -> str:
    return f"{number:016x}"


ENTRY = Entry(
    key=KEY,
    stated={"model.onnx": digest(1), "tokenizer.json": digest(2), "chat_template.jinja": digest(3)},
    asked=("5 6 7", "8 9"),
    tokens=("5 6 7", "8 9"),
    layers={title: {name: digest(10 * i + j) for j, name in enumerate(NAMES)} for i, title in enumerate(BATCHES)},
    logits=((digest(20), digest(21), digest(22)), (digest(23), digest(24))),
)
TENSORS = {name: f"{i:064x}" for i, name in enumerate((*NAMES, "model.norm.weight"))}
GOLDEN = Golden(merkle_root(TENSORS), TENSORS, (ENTRY,))
OTHER = digest(99)


def changed(place: tuple[Any, ...], value: Any = OTHER) -> Entry:
    """The entry with another digest in one place."""
    found = asdict(ENTRY)
    inner: Any = found
    for step in place[:-1]:
        inner[step] = list(inner[step]) if isinstance(inner[step], tuple) else inner[step]
        inner = inner[step]
    inner[place[-1]] = value
    logits = tuple(tuple(row) for row in found["logits"])
    return Entry(KEY, found["stated"], tuple(found["asked"]), tuple(found["tokens"]), found["layers"], logits)


def places() -> Iterator[tuple[tuple[Any, ...], str, str]]:
    """(place of a digest, cause that is told of a change there, what is named)."""
    yield ("stated", "model.onnx"), "program", "model.onnx"
    yield ("stated", "tokenizer.json"), "tokenizer or template", "tokenizer.json"
    yield ("stated", "chat_template.jinja"), "tokenizer or template", "chat_template.jinja"
    for title in BATCHES:
        for name in NAMES:
            yield ("layers", title, name), "kernel", f"{name} ({title})"
    for prompt, row in enumerate(ENTRY.logits):
        for token in range(len(row)):
            yield ("logits", prompt, token), "kernel", f"logits from prompt {prompt}, token {token}"


PLACES = list(places())
MAPPED = [place for place in PLACES if place[0][0] != "logits"]  # a file without as many logits as tokens is refused


def held(found: Entry, damaged: dict[str, Difference] | None = None, golden: Golden = GOLDEN) -> Check:
    return comparison.entry(golden, found, "onnxruntime fused level 4 on onnx", damaged or {})


def test_what_is_equal_is_exact() -> None:
    check = held(ENTRY)
    assert (check.verdict, check.differing, check.detail, check.first) == (Verdict.EXACT, 0, "", None)
    assert check.compared == 3 + 2 * len(NAMES) + 5 + 2


@pytest.mark.parametrize(("place", "cause", "named"), PLACES, ids=str)
def test_every_digest_that_changes_is_told_with_its_cause_and_place(place: Any, cause: str, named: str) -> None:
    check = held(changed(place))
    assert (check.verdict, check.differing) == (Verdict.DIFFERENT, 1)
    assert check.detail.startswith(f"{cause}: ")
    assert check.detail.count(": ") == 1
    assert named in check.detail
    assert check.first is not None
    assert check.first.found == OTHER
    assert check.wrong == ((place[2],) if place[0] == "layers" else ())


@pytest.mark.parametrize(("place", "cause", "named"), MAPPED, ids=str)
def test_a_digest_that_is_missing_is_a_difference(place: Any, cause: str, named: str) -> None:
    known = json.loads(json.dumps(asdict(ENTRY)))
    inner = known
    for step in place[:-1]:
        inner = inner[step]
    del inner[place[-1]]
    fewer = replace(ENTRY, stated=known["stated"], layers=known["layers"])
    for a, b in ((ENTRY, fewer), (fewer, ENTRY)):
        check = held(b, golden=replace(GOLDEN, entries=(a,)))
        assert (check.verdict, check.differing) == (Verdict.DIFFERENT, 1)
        assert check.detail.startswith(f"{cause}: ")
        assert named in check.detail


def test_token_ids_that_change_are_the_tokenizer_and_where() -> None:
    found = held(changed(("tokens", 1), "8 4"))
    assert (found.verdict, found.detail) == (
        Verdict.DIFFERENT, "tokenizer or template: token ids from prompt 1, token 1; logits equal"
    )  # fmt: skip
    assert found.first == Difference("token ids", (1, 1), "9", "4")
    asked = replace(changed(("asked", 0), "5 6"), logits=((OTHER, OTHER), ENTRY.logits[1]))
    found = held(asked)
    assert found.detail.endswith("token ids from prompt 0, token 2; logits of the 1 prompts with the same ids equal")
    assert found.first == Difference("token ids", (0, 2), "7", "nothing")


def test_what_changed_weights_explain_is_no_kernel() -> None:
    spoilt = {NAMES[1]: Difference(NAMES[1], (), "a", "b")}
    own, others = (changed(("layers", "8 rows", name)) for name in reversed(NAMES))
    for entry, causes in ((own, ["weights"]), (others, ["weights", "kernel"])):
        found = held(replace(entry, logits=((OTHER,) * 3, ENTRY.logits[1])), spoilt)
        assert [part.partition(":")[0] for part in found.detail.split("; ")[:-1]] == causes
        assert found.first == spoilt[NAMES[1]]
        assert found.detail.endswith("logits from prompt 0, token 0")
    assert held(ENTRY, spoilt).verdict is Verdict.EXACT  # the check of the weights says it


def test_another_program_explains_products_and_logits() -> None:
    entry = replace(changed(("layers", "1 row", NAMES[0])), stated={**ENTRY.stated, "config.json": OTHER})
    assert held(entry).detail == "program: config.json; logits equal"


def test_tensors_are_held_against_the_model() -> None:
    assert comparison.tensors(GOLDEN, TENSORS, "g.json").verdict is Verdict.EXACT
    found = comparison.tensors(GOLDEN, {**TENSORS, NAMES[1]: "f" * 64}, "g.json")
    assert (found.verdict, found.differing, found.wrong) == (Verdict.DIFFERENT, 1, (NAMES[1],))
    assert found.first == Difference(NAMES[1], (), TENSORS[NAMES[1]][:16], "f" * 16)
    fewer = {name: TENSORS[name] for name in NAMES}
    assert comparison.tensors(GOLDEN, fewer, "g.json").wrong == ("model.norm.weight",)


@pytest.mark.parametrize("part", [field.name for field in fields(Key)])
def test_an_unknown_key_is_absent_and_names_its_part(part: str) -> None:
    found = held(replace(ENTRY, key=replace(KEY, **{part: "0" * 15 + "1"})))
    assert found.verdict is Verdict.ABSENT
    assert found.compared == 0
    expected = "no golden for 0" if part == "runtime" else f"no golden for {part} "
    assert found.detail.startswith(expected)
    held_too = part in ("build", "isa", "threads")
    assert found.detail.endswith("; held against it: 14 digests equal") == held_too


def test_an_upgrade_says_what_it_changed_and_is_absent_all_the_same() -> None:
    entry = replace(changed(("logits", 1, 0)), key=replace(KEY, build="1.32.0"))
    found = held(entry)
    assert (found.verdict, found.detail) == (
        Verdict.ABSENT,
        "no golden for build '1.32.0' (the nearest has '1.31.1'); held against it: "
        "kernel: no product of a matrix, but the logits; logits from prompt 1, token 0",
    )


def test_the_nearest_entry_is_of_the_same_computation() -> None:
    near, far = replace(KEY, build="1.30.0", threads="4"), replace(KEY, configuration="off")
    golden = replace(GOLDEN, entries=(replace(ENTRY, key=far), replace(ENTRY, key=near)))
    assert held(ENTRY, golden=golden).detail.startswith(
        "no golden for build '1.31.1' (the nearest has '1.30.0'), threads '1' (the nearest has '4'); held against it: "
    )
    assert held(ENTRY, golden=replace(GOLDEN, entries=())).detail == (
        "no golden for onnxruntime: there is one for none"
    )


def test_a_file_comes_back_and_its_order_is_its_own(tmp_path: Path) -> None:
    more = [replace(ENTRY, key=replace(KEY, configuration=name)) for name in ("off", "fused level 1")]
    for name, entries in (("a", more), ("b", more[::-1])):
        file.write(GOLDEN.added(entries, tmp_path, force=False), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert file.read(tmp_path / "a") == GOLDEN.added(more, tmp_path, force=False)


def test_an_entry_is_replaced_by_force_only(tmp_path: Path) -> None:
    other = changed(("logits", 0, 0))
    assert GOLDEN.added([ENTRY], tmp_path, force=False) == GOLDEN
    with pytest.raises(UsageError, match=r"another golden for onnxruntime fused level 4, 1\.31\.1"):
        GOLDEN.added([other], tmp_path, force=False)
    assert GOLDEN.added([other], tmp_path, force=True).entries == (other,)


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another format": (lambda g: g.update(format=2), "'golden' of format 2, not 'golden' of format 1"),
    "another kind": (lambda g: g.update(kind="dist"), "is 'dist' of format 1"),
    "no entries": (lambda g: g.pop("tensors"), "tensors: Field required"),
    "a digest of other letters": (lambda g: g["tensors"].update({NAMES[0]: "x" * 64}), f"tensors.{NAMES[0]}"),
    "a tensor less": (lambda g: g["tensors"].pop(NAMES[0]), "is not that of its tensors"),
    "an entry twice": (lambda g: g["entries"].append(g["entries"][0]), "two entries have one key"),
    "no key": (lambda g: g["entries"][0].pop("key"), "entries.0.key: Field required"),
    "a number for a text": (lambda g: g["entries"][0]["key"].update(threads=1), "entries.0.key.threads"),
    "logits fewer than tokens": (lambda g: g["entries"][0]["logits"][1].pop(), "not as many logits as tokens"),
    "a prompt less": (lambda g: g["entries"][0]["logits"].pop(), "not as many logits as tokens"),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_file_is_refused(fault: str, tmp_path: Path) -> None:
    spoil, says = DAMAGE[fault]
    path = tmp_path / "golden.json"
    file.write(GOLDEN, path)
    content = json.loads(path.read_text("utf-8"))
    spoil(content)
    write_json(path, content)
    with pytest.raises(Refused) as refused:
        file.read(path)
    assert says in str(refused.value)
    with pytest.raises(UsageError, match="is there and no golden"):
        file.to_record(path, GOLDEN.root, TENSORS, force=True)


def test_activations_are_these_under_every_numpy() -> None:
    """The first bits of the generator, and that sums of them do round."""
    x = activations(8, 64)
    assert (x.shape, x.dtype) == ((8, 64), np.float32)
    assert np.array_equal(x[:1], activations(1, 64))
    assert [value.hex() for value in x[0, :3].astype(float)] == FIRST
    assert -1 <= x.min() < -0.9
    assert 0.9 < x.max() < 1
    y = np.float32(x[0] @ x[1])
    assert any(np.float32(np.sum((x[0] * x[1])[order])) != y for order in (slice(None, None, -1), np.argsort(x[0])))


FIRST = ["0x1.c623240000000p-1", "0x1.7e65400000000p-5", "-0x1.bcb6480000000p-1"]
