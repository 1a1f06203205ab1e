"""Every kind of source gives the same rows for the same data, and refuses what it cannot read by its place."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from edgeqaf import plugins
from edgeqaf.data import read_rows, tables
from edgeqaf.data.reading import digest
from edgeqaf.data.sources import hub
from edgeqaf.digest import file_sha256
from edgeqaf.errors import Refused, RuntimeAbsent, UsageError

Row = dict[str, Any]
CHECKOUT = Path(__file__).resolve().parents[2]
PAIRS: list[Row] = [{"prompt": f"Ask, {i}\n\u2028é", "completion": f'"{i}"\tyes'} for i in range(3)]
ALPACA: list[Row] = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Go.", "output": "Gone."},
]
SHAREGPT: list[Row] = [
    {
        "system": "Be brief.",
        "conversations": [
            {"from": "human", "value": "Find tea."},
            {"from": "function_call", "value": '{"name": "find", "arguments": {"what": "tea"}}'},
            {"from": "observation", "value": "[1]"},
            {"from": "gpt", "value": "One."},
        ],
        "tools": '[{"name": "find"}]',
    },
    {"conversations": [{"from": "human", "value": "Bye"}, {"from": "gpt", "value": "Bye."}], "tools": "[]"},
]
SHAPES = {"pairs": PAIRS, "alpaca": ALPACA, "sharegpt": SHAREGPT}


def write_jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def write_json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps(rows, indent=1), "utf-8")


def write_table(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        keys = list(rows[0])
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([keys, *([row.get(key, "") for key in keys] for row in rows)])


def write_parquet(path: Path, rows: list[Row]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {
    "jsonl": write_jsonl, "json": write_json, "csv": write_table, "tsv": write_table, "parquet": write_parquet,
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", WRITERS)
def test_every_source_gives_the_same_rows(suffix: str, shape: str, tmp_path: Path) -> None:
    if suffix in ("csv", "tsv") and shape == "sharegpt":
        pytest.skip("a cell holds no conversation")
    rows = SHAPES[shape]
    write_jsonl(tmp_path / "reference.jsonl", rows)
    WRITERS[suffix](tmp_path / f"a.{suffix}", rows)
    found = read_rows(tmp_path / f"a.{suffix}")
    assert found == read_rows(tmp_path / "reference.jsonl")
    assert len(found) == len(rows)


@pytest.mark.parametrize("suffix", WRITERS)
def test_columns_name_prompt_and_completion(suffix: str, tmp_path: Path) -> None:
    rows = [{"id": "7", "question": "Why?", "answer": "So."}]
    WRITERS[suffix](tmp_path / f"a.{suffix}", rows)
    assert read_rows(tmp_path / f"a.{suffix}", ["question", "answer"]) == [{"prompt": "Why?", "completion": "So."}]
    with pytest.raises(Refused, match="absent"):
        read_rows(tmp_path / f"a.{suffix}", ["question", "absent"])
    with pytest.raises(UsageError, match="--columns question,question names no prompt and completion"):
        read_rows(tmp_path / f"a.{suffix}", ["question", "question"])


def test_sharegpt_becomes_messages_with_tool_calls(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", SHAREGPT)
    first, second = read_rows(tmp_path / "a.json")
    call = {"type": "function", "function": {"name": "find", "arguments": {"what": "tea"}}}
    assert first == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Find tea."},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "[1]"},
            {"role": "assistant", "content": "One."},
        ],
        "tools": [{"name": "find"}],
    }
    assert list(second) == ["messages"]


def test_a_text_column_alone_is_plain_text_and_parts_of_a_content_are_joined(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nOne day.\n", "utf-8")
    assert read_rows(tmp_path / "a.csv") == [{"text": "One day."}]
    parts = [{"type": "text", "text": "One "}, {"type": "text", "text": "day."}]
    write_jsonl(tmp_path / "a.jsonl", [{"messages": [{"role": "assistant", "content": parts}], "prompt": None}])
    assert read_rows(tmp_path / "a.jsonl") == [{"messages": [{"role": "assistant", "content": "One day."}]}]


def test_plain_text_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One day.\n", "utf-8")
    with pytest.raises(UsageError, match=r"a\.txt is plain text; it has no columns a, b"):
        read_rows(tmp_path / "a.txt", ["a", "b"])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b"{", r"a\.json: not JSON \("),
        ("a.json", b'{"prompt": "x"}', r"a\.json holds a JSON dict, not a list of rows"),
        ("a.json", b'[{"prompt": "x", "completion": "y"}, 4]', r"a\.json: row 2: a int, not an object"),
        ("a.json", b'[{"prompt": "\\ud800", "completion": "y"}]', r"a\.json: not JSON \(.*surrogates not allowed"),
        ("a.json", b"[" * 100_000, r"a\.json: not JSON \("),
        ("a.tsv", b"a\tb\n1\t\n", r"a\.tsv:2: an empty b"),
        ("a.tsv", b"a,b\n1,2\n", r"columns a,b cannot be prompt and completion; it has a,b"),
        ("a.txt", b"\n\n", r"a\.txt holds no rows"),
        ("a.parquet", b"PAR1 and then nothing of it", r"a\.parquet: not readable as parquet behind row 0 \("),
    ],
)
def test_what_is_malformed_is_refused(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=says):
        read_rows(tmp_path / name)


def test_parquet_names_its_rows_and_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [*PAIRS, {"prompt": "x", "completion": ""}])
    with pytest.raises(Refused, match=r"a\.parquet: row 4: 'completion' is empty"):
        read_rows(tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet", [{"mr": "x", "ref": "y"}])
    with pytest.raises(Refused, match=r"b\.parquet has the columns mr, ref, none that a row is made of"):
        read_rows(tmp_path / "b.parquet")
    with pytest.raises(Refused, match=r"b\.parquet has the columns mr, ref, not ref and text"):
        read_rows(tmp_path / "b.parquet", ["ref", "text"])


def test_a_flipped_byte_of_a_parquet_page_with_a_checksum_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS), file, write_page_checksum=True, compression="none")
    data = bytearray(file.read_bytes())
    data[data.index(b"Ask, 1")] ^= 1
    file.write_bytes(data)
    with pytest.raises(Refused, match=r"a\.parquet: not readable as parquet behind row 0 \(.*checksum"):
        read_rows(file)


def test_a_missing_package_is_an_error_with_its_remedy() -> None:
    with pytest.raises(RuntimeAbsent, match=r"x\.parquet needs the package no_such_package") as absent:
        tables.package("no_such_package.inner", "x.parquet")
    assert absent.value.remedy == "pip install 'edgeqaf[data]'"


def test_the_package_of_sources_needs_no_optional_package() -> None:
    """All of them are imported to find one by its suffix; pyarrow and datasets only when they read."""
    script = (
        "import sys; from edgeqaf import plugins; [plugins.find('sources', n) for n in plugins.names('sources')];"
        "print(sorted({'pyarrow', 'datasets', 'torch', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert done.stdout.strip() == "[]"


def test_every_suffix_has_one_source() -> None:
    suffixes = [s for name in plugins.names("sources") for s in plugins.find("sources", name).suffixes]
    assert sorted(suffixes) == sorted(set(suffixes))


DATASET = """
import json, sys
from edgeqaf.data import read_rows
from edgeqaf.data.reading import digest
from edgeqaf.errors import EdgeqafError
for name in sys.argv[1:]:
    name, _, columns = name.partition(" ")
    try:
        rows = read_rows(name, columns.split(",") if columns else ())
        print(json.dumps([rows, digest(name, rows)]))
    except EdgeqafError as error:
        print(json.dumps([error.exit_code, error.cause, error.remedy]))
"""


def ask_datasets(folder: Path, *names: str) -> list[Any]:
    """What read_rows says of each name, in a process whose cache is in ``folder`` and whose network is off."""
    off = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", DATASET, *names],
        capture_output=True, text=True, check=True, cwd=CHECKOUT, env=os.environ | off,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_dataset_folder_is_loaded_as_the_hub_s_are(tmp_path: Path) -> None:
    """`datasets.load_dataset_builder` takes org/name and a folder in the Hub's layout the same way."""
    folder, other = tmp_path / "set", tmp_path / "other"
    for place in (folder, other):
        place.mkdir()
    write_jsonl(folder / "train.jsonl", SHAREGPT)
    write_jsonl(folder / "test.jsonl", SHAREGPT[1:])
    write_parquet(other / "train.parquet", PAIRS)
    write_jsonl(tmp_path / "reference.jsonl", SHAREGPT)
    expected = [dict(row) for row in read_rows(tmp_path / "reference.jsonl")]
    train, test, again, pairs, columns, absent, config, offline, bare = ask_datasets(
        tmp_path, f"hf:{folder}", f"hf:{folder}::test", f"hf:{folder}", f"hf:{other}", f"hf:{other} completion,prompt",
        f"hf:{folder}::dev", f"hf:{folder}:fr", "hf:no-one/nothing", "no-one/nothing",
    )  # fmt: skip
    assert train[0] == expected
    assert test[0] == expected[1:]
    assert again == train
    assert train[1] != test[1]
    assert len(train[1]) == 64
    assert pairs[0] == PAIRS
    assert columns[0] == [{"prompt": p["completion"], "completion": p["prompt"]} for p in PAIRS]
    assert (absent[0], "Unknown split" in absent[1]) == (3, True), absent
    assert (config[0], "'fr' not found" in config[1]) == (3, True), config
    assert (offline[0], offline[1].startswith("hf:no-one/nothing: ")) == (3, True), offline
    assert (bare[0], bare[1].startswith("no-one/nothing: ")) == (3, True), bare


def test_a_dataset_that_is_no_data_of_ours_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    script = tmp_path / "code"
    script.mkdir()
    (script / "code.py").write_text("raise SystemExit('run')", "utf-8")
    pictures, code = ask_datasets(tmp_path, f"hf:{folder}", f"hf:{script}")
    assert pictures[0] == 3
    assert "is read by datasets.packaged_modules.imagefolder" in pictures[1]
    assert code[0] == 3


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b:c:d:e", "hf:/"])
def test_a_name_of_no_dataset_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' names no dataset"):
        hub._parts(name)


@pytest.mark.parametrize(
    ("name", "parts"),
    [("a/b", ("a/b", None, "train")), ("hf:a/b", ("a/b", None, "train")), ("hf:a/b:c", ("a/b", "c", "train")),
     ("a/b:c:d", ("a/b", "c", "d")), ("hf:a/b::d", ("a/b", None, "d"))],
)  # fmt: skip
def test_a_name_is_repository_config_and_split(name: str, parts: tuple[str, str | None, str]) -> None:
    assert hub._parts(name) == parts


def test_a_path_wins_over_a_dataset_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("org").mkdir()
    Path("org/name").mkdir()
    with pytest.raises(Refused, match="org/name is a folder") as refused:
        read_rows("org/name")
    assert "hf:org/name to load it with datasets" in refused.value.remedy
    with pytest.raises(Refused, match=r"org/no\.jsonl does not exist"):
        read_rows("org/no.jsonl")


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", PAIRS)
    assert digest(tmp_path / "a.jsonl", PAIRS) == file_sha256(tmp_path / "a.jsonl")


FILES = {
    "alpaca_en_demo.json": 999, "alpaca_tiny.json": 100, "glaive_toolcall_en_demo.json": 300,
    "wikisql_mlx/train.jsonl": 1000, "viggo/valid.csv": 714, "tinystories_sample.txt": 1,
}  # fmt: skip
NAMED = {"gsm8k/train.jsonl": ("question,answer", 7473), "dolly_hhrlhf_train_small.jsonl": ("prompt,response", 1000)}


@pytest.mark.parametrize("file", [*FILES, *NAMED])
def test_published_data_is_read_whole(file: str, shared: Path) -> None:
    columns, count = NAMED.get(file, ("", FILES.get(file, 0)))
    assert len(read_rows(shared / "data" / file, columns.split(",") if columns else ())) == count
