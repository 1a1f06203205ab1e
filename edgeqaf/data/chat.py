"""Conversations as the model's own chat template writes them, split where the loss begins and ends.

The template is rendered in transformers' sandbox. For each assistant turn it is asked twice: for the
conversation before the turn, with the prompt for an answer (what a runtime will render), and for the
conversation with the turn. What the second has beyond the first is the answer, and has the loss.

Most templates only ever append, and a conversation is one text. Some rewrite: they drop the reasoning
of earlier turns, or move the system prompt to the last question. Then each assistant turn makes a text
of its own, as the model will meet it.

Two things are fixed so that training, scoring and tomorrow's resume see the same tokens. The token
that a text begins with stands there once, be it the template's or the tokenizer's. And the date that
a template may print is always `DATE`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from edgeqaf.data.rows import Row
from edgeqaf.errors import Refused
from edgeqaf.jsonfile import read_json
from edgeqaf.tokenizer import Tokenizer

DATE = "26 Jul 2024"
# Shadows the function of that name in transformers' sandbox. `+%}` keeps a newline that the template begins with.
_FIXED_DATE = f"{{% macro strftime_now(format) %}}{DATE}{{% endmacro +%}}"


@dataclass(frozen=True)
class Turn:
    """One assistant turn: the text before it, as far as no earlier turn of the same text holds it, and its own."""

    context: str
    answer: str


class Template:
    """A model's chat template, with the special tokens it may print."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        source = tokenizer.chat_template()
        if source is None:
            raise Refused(f"{tokenizer.folder} has no chat template for messages", "use prompt/completion rows instead")
        self.folder = tokenizer.folder
        self.source = _FIXED_DATE + source
        self.tokens = _special_tokens(tokenizer)
        bare = tokenizer.encode("a", prompt=False)
        self.begin = tokenizer.encode("a", prompt=True)[: -len(bare)]  # what the tokenizer itself begins with
        begin = self.tokens.get("bos_token", "")
        self.doubled = begin if begin and tokenizer.encode(begin, prompt=False) == self.begin else ""

    def render(self, messages: Sequence[Any], row: Row, *, generate: bool) -> str:
        """The text of ``messages``; ``generate`` adds the prompt for an answer."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered, _ = render_jinja_template(
                [list(messages)], tools=row.get("tools"), chat_template=self.source, add_generation_prompt=generate,
                **self.tokens,
            )  # fmt: skip
        except Exception as error:  # a template raises whatever its expressions run into
            roles = ", ".join(message["role"] for message in messages)
            raise Refused(
                f"the chat template of {self.folder} does not take the roles {roles}: {error}",
                "leave out what it does not support, or use prompt/completion rows",
            ) from None
        return str(rendered[0]).removeprefix(self.doubled)


@lru_cache(maxsize=4)
def template_of(tokenizer: Tokenizer) -> Template:
    """The template of ``tokenizer``; Refused where it has none."""
    return Template(tokenizer)


@lru_cache(maxsize=4)
def has_template(tokenizer: Tokenizer) -> bool:
    """Whether `template_of` has an answer."""
    return tokenizer.chat_template() is not None


def texts(row: Row, template: Template) -> list[list[Turn]]:
    """The conversation of ``row`` as texts, each a list of turns whose contexts and answers follow each other."""
    if "tools" in row:
        _require_written(row["tools"], template.render(row["messages"], row, generate=False), template)
    found: list[list[Turn]] = []
    rendered: str | None = None
    for i, message in enumerate(row["messages"]):
        if message["role"] != "assistant":
            continue
        before, after = question(row, i, template), template.render(row["messages"][: i + 1], row, generate=False)
        _require_written(message.get("tool_calls", []), after, template)
        start = len(before) if after.startswith(before) else _departure(before, after, row, i, template)
        if rendered is None or not after[:start].startswith(rendered):
            rendered = ""
            found.append([])
        found[-1].append(Turn(after[len(rendered) : start], after[start:]))
        rendered = after
    return found


def question(row: Row, turn: int, template: Template) -> str:
    """What a runtime renders for the model to answer with message ``turn``."""
    return template.render(row["messages"][:turn], row, generate=True)


def _departure(before: str, after: str, row: Row, turn: int, template: Template) -> int:
    """Where ``after`` leaves ``before``, if that is within the prompt for an answer (it may open a thought)."""
    common = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    if common < len(template.render(row["messages"][:turn], row, generate=False)):
        raise Refused(
            f"the chat template of {template.folder} rewrites the question once it is answered (turn {turn + 1}), "
            "so the loss cannot be limited to the answer",
            "use prompt/completion rows for this model",
        )
    return common


def _require_written(functions: Sequence[Any], text: str, template: Template) -> None:
    """Refuse a template that leaves out tools or calls of them: the model would be taught to say nothing."""
    for function in functions:
        name = function.get("function", function).get("name")
        if str(name) not in text:
            raise Refused(
                f"the chat template of {template.folder} does not write the tool {name!r}",
                "use a model whose template takes tools, or write the call as the message's content",
            )


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """``bos_token``, ``eos_token`` and so on, as the tokenizer's config gives them: strings, or objects of them."""
    file = tokenizer.folder / "tokenizer_config.json"
    values = read_json(file) if file.is_file() else {}
    named = {key: v.get("content") if isinstance(v, dict) else v for key, v in values.items() if key.endswith("_token")}
    return {key: value for key, value in named.items() if isinstance(value, str)}
