"""Rows to token ids with the labels of the loss; and to prompts and answers that can be scored."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgeqaf.data.chat import Template, Turn, has_template, question, template_of, texts
from edgeqaf.data.rows import Row
from edgeqaf.errors import Refused
from edgeqaf.tokenizer import Tokenizer

IGNORED = -100  # the label that transformers' losses leave out
# github.com/tatsu-lab/stanford_alpaca, "Data Release": the prompt without and with an input
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.",
)


@dataclass(frozen=True)
class Example:
    """One sequence: ids [n], and labels [n] equal to ids where the loss counts, else IGNORED.

    joins: it ends a document of plain text, and may share a window with the next one.
    """

    ids: list[int]
    labels: list[int]
    joins: bool = False


@dataclass(frozen=True)
class Task:
    """A row that can be scored: the prompt as the model sees it, and the answer expected."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Pieces:
    """What rows came to: the examples, how many rows were longer than allowed, and the longest row, in tokens."""

    examples: list[Example]
    too_long: int
    longest: int


def tokenize(rows: Iterable[Row], tokenizer: Tokenizer, max_length: int) -> tuple[list[Example], int]:
    """Examples of at most ``max_length`` tokens, and how many rows were longer and left out."""
    found = pieces(rows, tokenizer, max_length)
    examples = join(found.examples, max_length)
    if not examples:
        raise Refused("the text is one token long", "give a text of at least two tokens")
    return examples, found.too_long


def pieces(rows: Iterable[Row], tokenizer: Tokenizer, max_length: int) -> Pieces:
    """`tokenize` without the last step: each example is of one row alone, so equal rows make equal examples.

    Plain text is cut into windows; any other row is whole or left out. Raises Refused if all are left out.
    """
    examples: list[Example] = []
    too_long = longest = 0
    for row in rows:
        if "text" in row:
            examples += _windows([*tokenizer.encode(row["text"], prompt=True), tokenizer.eos[0]], max_length)
            continue
        found = _sequences(row, tokenizer)
        length = max(len(example.ids) for example in found)
        longest = max(longest, length)
        too_long += length > max_length
        examples += found if length <= max_length else []
    if not examples and too_long:
        raise Refused(
            f"all {too_long} rows are longer than {max_length} tokens (the longest {longest})", "raise --max-length"
        )
    return Pieces(examples, too_long, longest)


def join(examples: Sequence[Example], max_length: int) -> list[Example]:
    """Ends of documents joined, and cut into windows of ``max_length`` again; all others as they are."""
    ends = [token for example in examples if example.joins for token in example.ids]
    windows = [ends[start : start + max_length] for start in range(0, len(ends), max_length)]
    joined = [Example(window, list(window)) for window in windows if len(window) > 1]
    return [example for example in examples if not example.joins] + joined


def tasks(rows: Iterable[Row], tokenizer: Tokenizer) -> list[Task]:
    """Prompt and expected answer of every row that has them; plain text has none."""
    found = []
    for raw in rows:
        row = _spoken(raw, tokenizer)
        if "messages" in row:
            found.append(Task(question(row, len(row["messages"]) - 1, template_of(tokenizer)), _answer(row, tokenizer)))
        elif "prompt" in row:
            found.append(Task(_joined(row), row["completion"]))
    if not found:
        raise Refused("no row has a prompt and a completion to score", "give rows with prompt/completion or messages")
    return found


def _windows(ids: list[int], max_length: int) -> list[Example]:
    """A document cut into windows; the last one, if it is shorter, joins the next document's."""
    parts = [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
    return [Example(part, list(part), joins=len(part) < max_length) for part in parts]


def _sequences(row: Row, tokenizer: Tokenizer) -> list[Example]:
    """The sequences of a row that is no plain text: one, or several of a conversation whose template rewrites it."""
    spoken = _spoken(row, tokenizer)
    if "messages" in spoken:
        template = template_of(tokenizer)
        return [_chat_example(turns, template, tokenizer) for turns in texts(spoken, template)]
    prompt = tokenizer.encode(_joined(spoken), prompt=True)
    answer = [*tokenizer.encode(spoken["completion"], prompt=False), tokenizer.eos[0]]
    return [Example(prompt + answer, [IGNORED] * len(prompt) + answer)]


def _chat_example(turns: Sequence[Turn], template: Template, tokenizer: Tokenizer) -> Example:
    """One text of a conversation; labels cover each answer up to its end token, which is added where it has none.

    The tokens before an answer are those of the text before it, as at inference; the answer's are what the text
    with it has more, or, where the two do not fit together, those of the answer alone.
    """
    ids = list(template.begin)
    labels = [IGNORED] * len(ids)
    text = ""
    for turn in turns:
        asked, text = text + turn.context, text + turn.context + turn.answer
        before, after = (template.begin + tokenizer.encode(part, prompt=False) for part in (asked, text))
        if before[: len(ids)] != ids:
            before = ids + tokenizer.encode(turn.context, prompt=False)
        fits = after[: len(before)] == before
        answer = after[len(before) :] if fits else tokenizer.encode(turn.answer, prompt=False)
        end = next((n for n, token in enumerate(answer, 1) if token in tokenizer.eos), 0)
        if not end:
            answer.append(tokenizer.eos[0])
            end = len(answer)
        labels += [IGNORED] * (len(before) - len(ids)) + answer[:end] + [IGNORED] * (len(answer) - end)
        ids = before + answer
    return Example(ids, labels)


def _spoken(row: Row, tokenizer: Tokenizer) -> Row:
    """An instruction as a conversation, or, for a model without a chat template, in the words of Stanford Alpaca."""
    if "instruction" not in row:
        return row
    if has_template(tokenizer):
        content = "\n\n".join(filter(None, (row["instruction"], row["input"])))
        answer = {"role": "assistant", "content": row["output"]}
        return {"messages": [{"role": "user", "content": content}, answer]}
    given = f"### Input:\n{row['input']}\n\n" if row["input"] else ""
    prompt = f"{ALPACA[bool(given)]}\n\n### Instruction:\n{row['instruction']}\n\n{given}### Response:\n"
    return {"prompt": prompt, "completion": row["output"]}


def _answer(row: Row, tokenizer: Tokenizer) -> str:
    """What the last message is expected to be; a tool call or reasoning as the template writes it."""
    last = row["messages"][-1]
    if not last.keys() & {"tool_calls", "reasoning_content", "reasoning", "thinking"}:
        return str(last["content"])
    ids = tokenizer.encode(texts(row, template_of(tokenizer))[-1][-1].answer, prompt=False)
    end = next((n for n, token in enumerate(ids) if token in tokenizer.eos), len(ids))
    return tokenizer.decode(ids[:end]).strip()


def _joined(row: Row) -> str:
    prompt, completion = row["prompt"], row["completion"]
    open_joint = prompt and completion and not prompt[-1].isspace() and not completion[0].isspace()
    return f"{prompt}\n" if open_joint else str(prompt)
