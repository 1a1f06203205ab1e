"""``edgeqaf.yaml`` described: its JSON Schema, and a commented file to begin with.

Both are read off the command whose flags the keys are, and off the methods' own options, so that they
say what the command does.
"""

import json
from collections.abc import Iterator
from typing import Any

import typer

from edgeqaf import plugins
from edgeqaf.options import keys

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPES = {"int": "integer", "float": "number", "bool": "boolean", "list": "array"}  # else a string
NULL = {"type": "null"}
LISTED = ("columns", "report_to")  # flags that hold several values with commas between: a list will do
EXAMPLES = {"data": "train.jsonl", "output": "run"}  # of keys that a file must have, or the command line


def command(verb: str) -> Any:
    """The command line's own object for a verb, with its options."""
    app = typer.Typer(add_completion=False)
    app.command(verb)(plugins.find("commands", verb))
    return typer.main.get_command(app)


def schema(verb: str) -> dict[str, Any]:
    """JSON Schema of a YAML file for ``edgeqaf VERB -c``: what it accepts is what the command understands.

    No key is required, as any may stand on the command line instead.
    """
    options = keys(command(verb))
    properties = {key: _property(option) for key, option in options.items()}
    underscored = {key.replace("-", "_"): {"$ref": f"#/properties/{key}"} for key in options if "-" in key}
    return {
        "$schema": DIALECT, "title": f"edgeqaf {verb}", "type": "object", "additionalProperties": False,
        "properties": properties | underscored, **_methods(options),
    }  # fmt: skip


def commented(verb: str, method: str | None = None) -> str:
    """A YAML file with every key: its help as a comment, its default as the value, or commented out without one.

    method: whose options to write, if not the default's.
    """
    lines = [f"# Settings of `edgeqaf {verb} BASE -c edgeqaf.yaml`; a flag on the command line wins.", ""]
    options = keys(command(verb))
    chosen = method or options["method"].default
    for key, option in options.items():
        if key == "set":
            lines += [f"# Options of the method {chosen}; null stands for what the method chooses.", "set:"]
            lines += [f"  {line}" for line in _option_lines(chosen)]
        else:
            value = chosen if key == "method" else EXAMPLES.get(key, option.default)
            lines += [f"# {option.help}", f"{key}: {_yaml(value)}" if value is not None else f"# {key}:"]
    return "\n".join(lines) + "\n"


def _option_lines(method: str) -> Iterator[str]:
    for part in method.split("+"):
        options = plugins.find("adapters", part).options
        yield from (f"# {line}".rstrip() for line in (options.__doc__ or "").strip().splitlines() if line.strip())
        prefix = f"{part}." if "+" in method else ""
        yield from (f"{prefix}{name}: {_yaml(field.default)}" for name, field in options.model_fields.items())


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _property(option: Any) -> dict[str, Any]:
    """The schema of one flag's value; null stands for the default."""
    kind = getattr(option.type_descriptor.annotation, "__name__", "str")
    found: dict[str, Any] = {"description": option.help, "type": [TYPES.get(kind, "string"), "null"]}
    bounds = {"minimum": option.min, "maximum": option.max}
    found |= {name: bound for name, bound in bounds.items() if bound is not None}
    if option.default is not None and not option.required:
        found["default"] = option.default
    if option.multiple:  # KEY=VALUE items, or a mapping
        item = {"type": "string", "pattern": "^[^=]+="}
        found |= {"type": ["object", "array", "string", "null"], "items": item, "pattern": item["pattern"]}
    elif option.name in LISTED:
        found |= {"type": ["string", "array", "null"], "items": {"type": "string"}}
    return found


def _methods(options: dict[str, Any]) -> dict[str, Any]:
    """What depends on the method: which names there are, and which options ``set`` may hold for each."""
    methods = {name: plugins.find("adapters", name) for name in plugins.names("adapters")}
    exact = "|".join(name for name, method in methods.items() if method.lossless)
    names = [{"enum": [*methods, None]}, {"pattern": f"^({exact})([+]({exact}))+$"}]
    known = {name: {"$ref": f"#/$defs/{name}"} for name in methods}
    combined = {"properties": known, "propertyNames": {"pattern": f"^(({exact})[.])?[a-z_]+$"}}
    default = options["method"].default
    return {
        "allOf": [
            {"properties": {"method": {"anyOf": names}}},
            *(_when({"const": name}, of_set, name == default) for name, of_set in known.items()),
            _when({"pattern": "[+]"}, combined, False),
        ],
        "$defs": {name: _options(method.options) for name, method in methods.items()},
    }


def _when(method: dict[str, Any], of_set: dict[str, Any], default: bool) -> dict[str, Any]:
    """``set``, if it is a mapping, must be ``of_set`` where the method is so; or unnamed, if it is the default."""
    condition: dict[str, Any] = {"properties": {"method": method}} | ({} if default else {"required": ["method"]})
    return {"if": condition, "then": {"properties": {"set": {"if": {"type": "object"}, "then": of_set}}}}


def _options(options: Any) -> dict[str, Any]:
    """The schema of a method's options, any of which may be null: what the method chooses."""
    found: dict[str, Any] = options.model_json_schema()
    described = " ".join(found.pop("description", "").split())
    properties = {}
    for name, about in found.get("properties", {}).items():
        limits = {key: value for key, value in about.items() if key not in ("default", "title")}
        kinds = limits.get("anyOf", [limits])
        properties[name] = {"anyOf": [*(k for k in kinds if k != NULL), NULL], "default": about.get("default")}
    return {"description": described, "type": "object", "properties": properties, "additionalProperties": False}
