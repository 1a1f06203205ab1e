"""Training and test data: JSONL, CSV or plain text in; token ids with a loss mask out.

A JSONL row is one of

    {"prompt": "...", "completion": "..."}                        loss on the completion
    {"messages": [{"role": "user", "content": "..."}, ...]}       loss on every assistant turn
    {"text": "..."}                                               loss on everything

A CSV's first two columns are prompt and completion, unless ``columns`` names others. A text file is
split at lines ``<|endoftext|>`` and packed into windows. Where neither side of the joint between
prompt and completion has white space, a newline is put between them.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqaf.errors import Refused, UsageError
from edgeqaf.tokenizer import Tokenizer

IGNORED = -100  # the label that transformers' losses leave out
SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True)
class Example:
    """One sequence: ids [n], and labels [n] equal to ids where the loss counts, else IGNORED."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Task:
    """A row that can be scored: the prompt as the model sees it, and the answer expected."""

    prompt: str
    answer: str


Row = Mapping[str, Any]


def read_rows(path: Path, columns: Sequence[str] = ()) -> list[Row]:
    """The rows of a data file, each validated; raises Refused with file, line and reason."""
    if not path.is_file():
        raise Refused(
            f"{path} {'is a folder' if path.is_dir() else 'does not exist'}", "check the path of the data file"
        )
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not UTF-8 text (byte {error.start})", "convert the file to UTF-8") from None
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".txt": _read_text}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(
            f"{path}: unknown kind of data file {path.suffix!r}", f"use one of {', '.join(sorted(readers))}"
        )
    rows = list(reader(path, text, columns))
    if not rows:
        raise Refused(f"{path} holds no rows", "give a data file with at least one row")
    return rows


def tokenize(rows: Iterable[Row], tokenizer: Tokenizer, max_length: int) -> tuple[list[Example], int]:
    """Examples of at most ``max_length`` tokens, and how many rows were longer and left out."""
    examples: list[Example] = []
    stream: list[int] = []
    too_long = 0
    for row in rows:
        if "text" in row:
            stream += [*tokenizer.encode(row["text"], prompt=True), tokenizer.eos[0]]
            continue
        example = _chat_example(row, tokenizer) if "messages" in row else _pair_example(row, tokenizer)
        too_long += len(example.ids) > max_length
        examples += [example] if len(example.ids) <= max_length else []
    for start in range(0, len(stream), max_length):
        window = stream[start : start + max_length]
        examples += [Example(window, list(window))] if len(window) > 1 else []
    if not examples:
        raise Refused(f"all {too_long} rows are longer than {max_length} tokens", "raise --max-length")
    return examples, too_long


def tasks(rows: Iterable[Row], tokenizer: Tokenizer) -> list[Task]:
    """Prompt and expected answer of every row that has them; plain text has none."""
    found = []
    for row in rows:
        if "messages" in row:
            *before, last = row["messages"]
            found.append(Task(_render(before, tokenizer, generate=True), last["content"]))
        elif "prompt" in row:
            found.append(Task(_joined(row), row["completion"]))
    if not found:
        raise Refused("no row has a prompt and a completion to score", "give rows with prompt/completion or messages")
    return found


def _pair_example(row: Row, tokenizer: Tokenizer) -> Example:
    prompt = tokenizer.encode(_joined(row), prompt=True)
    answer = [*tokenizer.encode(row["completion"], prompt=False), tokenizer.eos[0]]
    return Example(prompt + answer, [IGNORED] * len(prompt) + answer)


def _joined(row: Row) -> str:
    prompt, completion = row["prompt"], row["completion"]
    open_joint = prompt and completion and not prompt[-1].isspace() and not completion[0].isspace()
    return f"{prompt}\n" if open_joint else str(prompt)


def _chat_example(row: Row, tokenizer: Tokenizer) -> Example:
    """Token by token the rendered conversation; labels cover each assistant turn and its end."""
    messages = row["messages"]
    ids: list[int] = []
    labels: list[int] = []
    rendered = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(messages[:i], tokenizer, generate=True)
        after = _render(messages[: i + 1], tokenizer, generate=False)
        if not (before.startswith(rendered) and after.startswith(before)):
            raise Refused(
                "the chat template rewrites earlier turns, so the loss cannot be limited to the assistant's",
                "use prompt/completion rows for this model",
            )
        context = tokenizer.encode(before[len(rendered) :], prompt=False)
        answer = tokenizer.encode(after[len(before) :], prompt=False)
        if answer and not set(answer) & set(tokenizer.eos):
            answer.append(tokenizer.eos[0])
        ids += context + answer
        labels += [IGNORED] * len(context) + answer
        rendered = after
    return Example(ids, labels)


def _render(messages: Sequence[Any], tokenizer: Tokenizer, *, generate: bool) -> str:
    """The conversation in the model's chat template, rendered in transformers' sandbox."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = tokenizer.chat_template()
    if template is None:
        raise Refused(f"{tokenizer.folder} has no chat template for messages", "use prompt/completion rows instead")
    rendered, _ = render_jinja_template([list(messages)], chat_template=template, add_generation_prompt=generate)
    return str(rendered[0])


def _read_jsonl(path: Path, text: str, columns: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also cut at U+2028, which JSON allows
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            raise Refused(f"{path}:{number}: not JSON ({error})", "each line must be one JSON object") from None
        fault = _fault(row)
        if fault:
            remedy = 'a row is {"prompt", "completion"}, {"messages"} or {"text"}; see docs/guides/finetune.md'
            raise Refused(f"{path}:{number}: {fault}", remedy)
        yield row


def _fault(row: Any) -> str | None:
    """What is wrong with a JSONL row, or None."""
    if not isinstance(row, dict):
        return f"a {type(row).__name__}, not an object"
    if "messages" in row:
        messages = row["messages"]
        whole = isinstance(messages, list) and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in messages
        )
        if not whole or not messages or messages[-1]["role"] != "assistant":
            return "messages must be a list of {role, content} that ends with the assistant's"
        return None
    wanted = ("text",) if "text" in row else ("prompt", "completion")
    for key in wanted:
        if not isinstance(row.get(key), str):
            return f"{key!r} is missing or not a string (keys: {', '.join(sorted(map(str, row))) or 'none'})"
    return None if row[wanted[-1]] else f"{wanted[-1]!r} is empty"


def _read_csv(path: Path, text: str, columns: Sequence[str]) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = list(reader.fieldnames or [])
        chosen = list(columns) or header[:2]
        if len(set(chosen)) != 2 or any(header.count(c) != 1 for c in chosen):
            raise Refused(
                f"{path}: columns {', '.join(chosen) or 'none'} cannot be prompt and completion; "
                f"it has {', '.join(header) or 'none'}",
                "name two of its columns: --columns PROMPT,COMPLETION",
            )
        for row in reader:
            prompt, completion = row[chosen[0]], row[chosen[1]]
            if None in row:
                raise Refused(
                    f"{path}:{reader.line_num}: more fields than the header's {len(header)}",
                    'write a field that holds a comma in double quotes: "like, this"',
                )
            if not prompt or not completion:
                raise Refused(
                    f"{path}:{reader.line_num}: an empty {chosen[0] if not prompt else chosen[1]}", "fill or remove it"
                )
            yield {"prompt": prompt, "completion": completion}
    except csv.Error as error:
        raise Refused(f"{path}:{reader.reader.line_num}: {error}", "the CSV is malformed there") from None


def _read_text(path: Path, text: str, columns: Sequence[str]) -> Iterator[Row]:
    for document in text.split(f"\n{SEPARATOR}"):
        if document.strip():
            yield {"text": document.strip("\n")}
