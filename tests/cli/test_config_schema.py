"""The schema of edgeqaf.yaml says what the command line accepts, and the file it begins with is accepted."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from edgeqaf import cli, configfile, plugins
from edgeqaf.method import method_of

METHODS = plugins.names("adapters")


@pytest.fixture(scope="module")
def schema(command: Any) -> Any:
    found = command("config", "--schema").json()
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def accepts(schema: Any, text: str) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(yaml.safe_load(text)))


def test_every_flag_is_in_it_with_its_help_and_default(schema: Any) -> None:
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    command: Any = typer.main.get_command(cli.application()).commands["finetune"]  # type: ignore[attr-defined]
    options = {p.opts[0]: p for p in command.params if p.param_type_name == "option"}
    expected = {flag.removeprefix("--") for flag in options} - {"config", "help"}
    assert expected == {name for name, about in schema["properties"].items() if "$ref" not in about}
    for name in expected:
        about, option = schema["properties"][name], options[f"--{name}"]
        assert about["description"] == option.help
        assert about.get("default") == option.default or option.required or option.default is None
        assert (about.get("minimum"), about.get("maximum")) == (option.min, option.max)
    assert schema["properties"]["seed"]["maximum"] == 2**32 - 1


@pytest.mark.parametrize("method", METHODS)
def test_every_option_of_every_method_is_in_it(method: str, schema: Any) -> None:
    fields = plugins.find("adapters", method).options.model_fields
    found = schema["$defs"][method]["properties"]
    assert {name: about["default"] for name, about in found.items()} == {n: f.default for n, f in fields.items()}


GOOD = [
    "{}", "data: a.jsonl\noutput: run", "max-length: 128", "max_length: 128", "lr: null", "lr: 1", "resume: true",
    "method: lota\nset: {move_rate: 0.5, paper: true, omega: null}", "set: [groups=2, lr=0.5]", "set: groups=2",
    "method: lora\nset: {alpha: 16}", "columns: [question, answer]", "columns: question,answer", "set:",
    "report-to: [tensorboard]", "method: lowrank+scale\nset: {rank: 4, scale.lr: 0.02}",
    "method: lowrank+scale\nset: {scale: {lr: 0.02}}",
]  # fmt: skip
BAD = [
    "[]", "stpes: 3", "config: a.yaml", "steps: many", "steps: 0", "steps: 2.5", "holdout: 0.9", "resume: 3",
    "method: nothing", "method: lota\nset: {move_rate: 2}", "method: lota\nset: {movement: 1}",
    "method: lora\nset: {move_rate: 0.5}", "set: [rank]", "set: {omgea: 1}", "method: lora+scale",
    "method: lowrank+scale\nset: {scale: {rank: 3}}", "method: lowrank+scale\nset: {lota.rank.x: 3}", "3: 4",
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_what_is_good_passes_schema_and_command_line_alike(text: str, schema: Any, shell: Any, road: Any) -> None:
    assert accepts(schema, text)
    Path("edgeqaf.yaml").write_text(text, "utf-8")
    columns = ("--columns", "prompt,completion") if "columns" in text else ()
    line = ("finetune", road.base, "--data", road.data, "-o", "run", "-c", "edgeqaf.yaml", *columns, "--dry-run")
    assert shell.json(*line, "--threads", 1, "--batch", 2)["rows"] == 38


@pytest.mark.parametrize("text", BAD)
def test_what_is_bad_passes_neither(text: str, schema: Any, shell: Any, road: Any) -> None:
    assert not accepts(schema, text)
    Path("edgeqaf.yaml").write_text(text, "utf-8")
    line = ("finetune", road.base, "--data", road.data, "-o", "run", "-c", "edgeqaf.yaml", "--dry-run")
    assert shell.run(*line).code == 2


@pytest.mark.parametrize("method", [None, *METHODS, "lowrank+scale"])
def test_init_writes_every_default(method: str | None, schema: Any, shell: Any) -> None:
    chosen = () if method is None else ("--method", method)
    said = shell.ok("config", "--init", *chosen).out
    assert "next: edgeqaf finetune base -c edgeqaf.yaml" in said
    text = Path("edgeqaf.yaml").read_text("utf-8")
    assert accepts(schema, text)
    values = yaml.safe_load(text)
    written = {key: value for key, value in values.items() if key not in ("set", "data", "output", "method")}
    assert written == {key: schema["properties"][key]["default"] for key in written}
    commented = {line.split(":")[0].removeprefix("# ") for line in text.splitlines() if line.startswith("# ")}
    for key, about in schema["properties"].items():
        assert key in values or key in commented or "$ref" in about, key
    given = {key: value for key, value in values["set"].items() if value is not None}
    assert method_of(values["method"], given)[1].model_dump() == method_of(values["method"], {})[1].model_dump()


def test_a_run_of_the_file_is_a_run_of_the_defaults(shell: Any, road: Any) -> None:
    shell.ok("config", "--init", "--method", "lowrank")
    quick = ("--data", road.data, "--steps", 2, "--batch", 4, "--threads", 1, "--max-length", 48, "--lr", 0.5)
    shell.ok("finetune", road.base, "-c", "edgeqaf.yaml", *quick, "-o", "file", "--method", "lora")
    shell.ok("finetune", road.base, *quick, "-o", "flags", "--method", "lora", "--set", "rank=16")
    for name in ("adapter_model.safetensors", "log.jsonl", "finetune.json"):
        ours, theirs = (Path(run, name).read_bytes() for run in ("file", "flags"))
        assert name == "finetune.json" or ours == theirs


def test_init_says_where_as_json(shell: Any) -> None:
    assert shell.json("config", "--init", "-o", "a/b.yaml") == {"output": "a/b.yaml"}
    assert yaml.safe_load(Path("a/b.yaml").read_text("utf-8"))["steps"] == 300


def test_a_misused_config_is_refused(shell: Any) -> None:
    shell.refused(2, "config", says="config needs one of --schema and --init")
    shell.refused(2, "config", "--schema", "--init", says="config needs one of --schema and --init")
    shell.refused(2, "config", "--init", "--method", "lorra", says="unknown adapter 'lorra'")
    Path("edgeqaf.yaml").write_text("mine", "utf-8")
    shell.refused(2, "config", "--init", says="edgeqaf.yaml already exists")


def test_a_tracker_that_is_unknown_or_absent_is_refused(shell: Any, road: Any) -> None:
    line = ("finetune", road.base, "--data", road.data, "-o", "run", "--report-to")
    shell.refused(2, *line, "tensorbord", says="unknown tracker 'tensorbord'")
    shell.refused(6, *line, "none,neptune", says="the tracker neptune is not installed")


def test_a_dry_run_says_rows_memory_and_time(shell: Any, road: Any) -> None:
    said = shell.ok("finetune", road.base, "--data", road.data, "-o", "run", "--dry-run", "--threads", 1).out
    for part in ("rows: 38", "rows held out: 2", "tokens: ", "epochs: ", "activations", "time, estimated: "):
        assert part in said
    huge = shell.ok("finetune", road.base, "--data", road.data, "-o", "run", "--dry-run", "--batch", 10**9).out
    assert "time: not measured, as the estimate is beyond the memory that is free" in huge


def test_the_schema_is_the_same_every_time() -> None:
    assert json.dumps(configfile.schema("finetune")) == json.dumps(configfile.schema("finetune"))
