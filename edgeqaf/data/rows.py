"""The shapes a row may have, whatever file it came from. Any other is refused.

    {"prompt": "...", "completion": "..."}                          loss on the completion
    {"messages": [{"role": "user", "content": "..."}, ...]}         loss on every assistant turn
    {"conversations": [{"from": "human", "value": "..."}, ...]}     ShareGPT: the same, in other words
    {"instruction": "...", "input": "...", "output": "..."}         Alpaca: loss on the output
    {"text": "..."}                                                 loss on everything

A conversation may carry ``tools`` (JSON schemas, or a string that holds them), an assistant's message
``tool_calls``. Other keys are left aside. What comes out holds only what its shape names, so that two
rows are equal where a model would see no difference.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

# Every key that some shape reads: all that a table needs to be asked for.
KEYS = (
    "prompt", "completion", "messages", "conversations", "system", "tools", "instruction", "input", "output", "text",
)  # fmt: skip
ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system", "observation": "tool", "tool": "tool", "function_response": "tool",
}  # fmt: skip
CALL = "function_call"  # ShareGPT's name for an assistant's turn that holds a tool call as JSON


def normal(raw: Any, columns: Sequence[str] = ()) -> Row:
    """``raw`` in one of the shapes above, without null values; ValueError says what is wrong with it."""
    if not isinstance(raw, dict):
        raise ValueError(f"a {type(raw).__name__}, not an object")
    given = {key: value for key, value in raw.items() if value is not None}
    if columns:
        return dict(zip(("prompt", "completion"), _strings(given, columns), strict=True))
    if "messages" in given:
        return _chat(given["messages"], given)
    if "conversations" in given:
        return _chat(_from_sharegpt(given["conversations"], given.get("system")), given)
    if {"instruction", "output"} <= given.keys():
        given.setdefault("input", "")
        keys = ("instruction", "input", "output")
    else:
        pair = {"prompt", "completion"} <= given.keys()
        keys = ("text",) if "text" in given and not pair else ("prompt", "completion")  # type: ignore[assignment]
    return dict(zip(keys, _strings(given, keys), strict=True))


def _strings(given: dict[str, Any], keys: Sequence[str]) -> list[str]:
    """The values of ``keys``: strings, the last one not empty."""
    for key in keys:
        if not isinstance(given.get(key), str):
            raise ValueError(
                f"{key!r} is missing or not a string (keys: {', '.join(sorted(map(str, given))) or 'none'})"
            )
    if not given[keys[-1]]:
        raise ValueError(f"{keys[-1]!r} is empty")
    return [given[key] for key in keys]


def _chat(messages: Any, given: dict[str, Any]) -> Row:
    whole = [_message(m) for m in messages] if isinstance(messages, list) else []
    if not whole or None in whole or whole[-1]["role"] != "assistant":  # type: ignore[index]
        raise ValueError("messages must be a list of {role, content} that ends with the assistant's")
    tools = _tools(given.get("tools"))
    return {"messages": whole} | ({"tools": tools} if tools else {})


def _message(message: Any) -> dict[str, Any] | None:
    """A message with its content as one string, without nulls and empty lists; None where it is malformed."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return None
    kept = {key: value for key, value in message.items() if value is not None and value != []}
    content = kept.setdefault("content", "" if "tool_calls" in kept else None)
    if isinstance(content, list):  # parts: text is joined, anything else has no place here
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = kept["content"] = None if None in parts else "".join(map(str, parts))
    return kept if isinstance(content, str) and _calls_are_whole(kept.get("tool_calls", [])) else None


def _calls_are_whole(calls: Any) -> bool:
    """Whether each is {"function": {"name", "arguments"}}, as chat templates take them."""
    functions = (
        [call.get("function") if isinstance(call, dict) else None for call in calls]
        if isinstance(calls, list)
        else [None]
    )
    return all(isinstance(f, dict) and isinstance(f.get("name"), str) and "arguments" in f for f in functions)


def _tools(tools: Any) -> list[Any]:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except (ValueError, RecursionError) as error:
            raise ValueError(f"'tools' is a string that is not JSON ({error})") from None
    if not isinstance(tools or [], list) or not all(isinstance(tool, dict) for tool in tools or []):
        raise ValueError("'tools' is not a list of objects")
    return tools or []


def _from_sharegpt(turns: Any, system: Any) -> list[Any]:
    """Messages of ``[{"from", "value"}]``; a turn that already has a role stays as it is."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("conversations must be a list of {from, value}")
    before = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    return before + [turn if "role" in turn else _from_turn(turn) for turn in turns]


def _from_turn(turn: dict[str, Any]) -> dict[str, Any]:
    speaker, value = turn.get("from"), turn.get("value")
    if speaker == CALL:
        try:
            calls = json.loads(str(value))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"a {CALL} that is not JSON ({error})") from None
        functions = calls if isinstance(calls, list) else [calls]
        return {"role": "assistant", "tool_calls": [{"type": "function", "function": f} for f in functions]}
    if speaker not in ROLES:
        raise ValueError(f"a turn from {speaker!r}; known: {', '.join([*ROLES, CALL])}")
    return {"role": ROLES[speaker], "content": value}
