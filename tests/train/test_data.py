"""Rows in, tokens out: what counts in the loss, and what is refused with its line."""

from pathlib import Path

import pytest

from edgeqaf.data import IGNORED, read_rows, tasks, tokenize
from edgeqaf.errors import Refused, UsageError
from edgeqaf.tokenizer import Tokenizer

STORYTELLER = Path(__file__).resolve().parents[2] / "examples" / "storyteller-6m"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(STORYTELLER)


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder / name


def test_loss_covers_the_completion_and_its_end_only(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, "a.jsonl", '{"prompt": "Say one.", "completion": "one"}\n'))
    (example,), too_long = tokenize(rows, tokenizer, 64)
    prompt = tokenizer.encode("Say one.\n", prompt=True)
    assert example.ids == [*prompt, *tokenizer.encode("one", prompt=False), tokenizer.eos[0]]
    assert example.labels == [IGNORED] * len(prompt) + example.ids[len(prompt) :]
    assert too_long == 0


@pytest.mark.parametrize(("prompt", "completion"), [("Q: ", "A"), ("Q:", " A"), ("Q\n", "A")])
def test_white_space_at_the_joint_is_kept_as_it_is(prompt: str, completion: str, tokenizer: Tokenizer) -> None:
    (task,) = tasks([{"prompt": prompt, "completion": completion}], tokenizer)
    assert task.prompt == prompt


def test_csv_takes_its_first_two_columns_or_those_named(tmp_path: Path) -> None:
    file = write(tmp_path, "a.csv", 'mr,ref,extra\n"x, y",first,other\n')
    assert read_rows(file) == [{"prompt": "x, y", "completion": "first"}]
    assert read_rows(file, ["ref", "extra"]) == [{"prompt": "first", "completion": "other"}]
    with pytest.raises(Refused, match="columns a, b cannot be prompt and completion; it has mr, ref, extra"):
        read_rows(file, ["a", "b"])


def test_text_is_split_into_documents_and_packed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write(tmp_path, "a.txt", "One day.\n<|endoftext|>\nAnother day.\n<|endoftext|>\n")
    rows = read_rows(file)
    assert [row["text"] for row in rows] == ["One day.", "Another day."]
    first, second = ([*tokenizer.encode(row["text"], prompt=True), tokenizer.eos[0]] for row in rows)
    (window,), _ = tokenize(rows, tokenizer, 64)  # both documents, and their ends, in one
    assert window.ids == window.labels == first + second
    examples, _ = tokenize(rows, tokenizer, 3)
    full, ends = first[: len(first) // 3 * 3] + second[: len(second) // 3 * 3], [len(e.ids) for e in examples]
    assert [token for e in examples for token in e.ids][: len(full)] == full
    assert all(n == 3 for n in ends[:-1])


def test_messages_train_on_every_assistant_turn(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((STORYTELLER / name).read_bytes())
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    tokenizer = Tokenizer(tmp_path)
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "See you")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (example,), _ = tokenize([row], tokenizer, 64)
    learned = tokenizer.decode([label for label in example.labels if label != IGNORED])
    assert learned == "Hello\nSee you\n"
    (task,) = tasks([row], tokenizer)
    assert task.prompt == "<|user|>Hi\n<|assistant|>Hello\n<|user|>Bye\n<|assistant|>"
    assert task.answer == "See you"


def test_messages_without_a_template_are_refused(tokenizer: Tokenizer) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(Refused, match="has no chat template"):
        tokenize([row], tokenizer, 64)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{oops", r"a\.jsonl:2: not JSON"),
        ("[1]", r"a\.jsonl:2: a list, not an object"),
        ('{"prompt": "x"}', r"a\.jsonl:2: 'completion' is missing or not a string \(keys: prompt\)"),
        ('{"prompt": "x", "completion": 3}', r"a\.jsonl:2: 'completion' is missing or not a string"),
        ('{"prompt": "x", "completion": ""}', r"a\.jsonl:2: 'completion' is empty"),
        ('{"messages": []}', r"a\.jsonl:2: messages must be a list"),
        ('{"messages": [{"role": "user", "content": "x"}]}', r"a\.jsonl:2: messages must be a list"),
        (
            '{"messages": [{"role": "assistant", "content": [{"type": "image"}]}]}',
            r"a\.jsonl:2: messages must be a list",
        ),
        ('{"messages": [{"role": "assistant", "tool_calls": [{}]}]}', r"a\.jsonl:2: messages must be a list"),
        (
            '{"messages": [{"role": "assistant", "content": "x"}], "tools": "["}',
            r"2: 'tools' is a string that is not JSON",
        ),
        ('{"messages": [{"role": "assistant", "content": "x"}], "tools": [3]}', "2: 'tools' is not a list of objects"),
        ('{"conversations": 7}', r"a\.jsonl:2: conversations must be a list of \{from, value\}"),
        ('{"conversations": [{"from": "elf", "value": "x"}]}', "2: a turn from 'elf'; known: human, user, gpt"),
        ('{"conversations": [{"from": "function_call", "value": "{"}]}', "2: a function_call that is not JSON"),
        ('{"conversations": [{"from": "human", "value": "x"}]}', r"a\.jsonl:2: messages must be a list"),
        ('{"instruction": "x", "output": ""}', r"a\.jsonl:2: 'output' is empty"),
        ('{"instruction": "x", "input": 3, "output": "y"}', r"a\.jsonl:2: 'input' is missing or not a string"),
        ('{"text": ""}', r"a\.jsonl:2: 'text' is empty"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(line: str, fault: str, tmp_path: Path) -> None:
    file = write(tmp_path, "a.jsonl", '{"text": "fine"}\n' + line + "\n")
    with pytest.raises(Refused, match=fault):
        read_rows(file)


def test_missing_empty_and_unknown_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"none\.jsonl does not exist"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(Refused, match="holds no rows"):
        read_rows(write(tmp_path, "empty.jsonl", "\n"))
    with pytest.raises(UsageError, match=r"unknown kind of data file '\.xlsx'") as unknown:
        read_rows(write(tmp_path, "a.xlsx", "x"))
    assert unknown.value.remedy == "use one of .csv, .json, .jsonl, .ndjson, .parquet, .tsv, .txt"
    (tmp_path / "latin.csv").write_bytes(b"a,b\n\xff,x\n")
    with pytest.raises(Refused, match=r"not UTF-8 text \(byte 4\)"):
        read_rows(tmp_path / "latin.csv")


def test_rows_longer_than_the_limit_are_counted_and_left_out(tokenizer: Tokenizer) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "word " * 50, "completion": "b"}]
    examples, too_long = tokenize(rows, tokenizer, 16)
    assert (len(examples), too_long) == (1, 1)
    longest = len(tokenizer.encode("word " * 50, prompt=True)) + len(tokenizer.encode("b", prompt=False)) + 1
    with pytest.raises(Refused, match=rf"all 1 rows are longer than 16 tokens \(the longest {longest}\)"):
        tokenize(rows[1:], tokenizer, 16)
