"""What comes in broken is refused by name, and nothing is left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import cut, edit, flip, flip_in
from safetensors.numpy import load_file, save_file

WEIGHTS, UP = "model.safetensors", "model.layers.0.mlp.up_proj.weight"
Copy = Callable[[Path], Path]


def retensored(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        save_file(tensors | {name: change(tensors.get(name, np.zeros(0, np.float32)))}, folder / WEIGHTS)

    return spoil


def with_nan(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[3, 5] = np.nan
    return values


MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS),
    "half the weights": (lambda f: cut(f / WEIGHTS), f"{WEIGHTS}: "),
    "empty weights": (lambda f: cut(f / WEIGHTS, 0), f"{WEIGHTS}: "),
    "header size flipped": (lambda f: flip(f / WEIGHTS, 4), f"{WEIGHTS}: "),
    "header brace flipped": (lambda f: flip(f / WEIGHTS, 8), f"{WEIGHTS}: "),
    "header name flipped": (lambda f: flip(f / WEIGHTS, 100), f"{WEIGHTS}: "),
    "weights are a folder": (lambda f: [(f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()], WEIGHTS),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json does not exist"),
    "config is a list": (lambda f: (f / "config.json").write_text("[1]"), "holds a JSON list"),
    "config is binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "not readable JSON"),
    "gpt2": (lambda f: edit(f / "config.json", model_type="gpt2"), "'gpt2' is not supported"),
    "untied without a head": (lambda f: edit(f / "config.json", tie_word_embeddings=False), "lm_head.weight"),
    "a layer too few": (lambda f: edit(f / "config.json", num_hidden_layers=3), "model.layers.2."),
    "NaN": (retensored(UP, with_nan), f"{UP}[3, 5] is nan"),
    "beyond float16": (retensored(UP, lambda w: w.astype(np.float32) * 1e30), UP),
    "integers": (retensored(UP, lambda w: w.astype(np.float32).astype(np.int8)), f"{UP} is I8"),
    "a vector for a matrix": (retensored(UP, lambda w: w[0]), UP),
    "index without a map": (lambda f: (f / f"{WEIGHTS}.index.json").write_text("{}"), "no weight_map"),
    "shard outside": (
        lambda f: (f / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "../x"}}'), "'../x'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", MODELS)
def test_a_broken_float_model_is_refused(fault: str, shell: Any, copy: Copy, tiny_float_model: Path) -> None:
    spoil, says = MODELS[fault]
    folder = copy(tiny_float_model)
    spoil(folder)
    shell.refused(3, "quantize", folder, "-o", "base", says=says)


def test_a_missing_or_mistaken_folder_is_named(shell: Any, road: Any, tiny_float_model: Path) -> None:
    shell.refused(3, "quantize", "nowhere", "-o", "base", says="nowhere is not a folder")
    shell.refused(3, "quantize", tiny_float_model / "config.json", "-o", "base", says="config.json is not a folder")
    shell.refused(3, "quantize", road.base, "-o", "again", says="has a quantization_config")
    shell.refused(3, "finetune", tiny_float_model, "--data", road.data, "-o", "run", says="has no edgeqaf.json")
    shell.refused(3, "finetune", road.run, "--data", road.data, "-o", "run", says="is a run folder, not a model")
    shell.refused(3, "merge", road.base, "-o", "merged", says="is a base folder, not a run")
    shell.refused(3, "export", road.run, "-o", "dist", says="is a run folder, not a model")
    shell.refused(3, "verify", road.merged, says="is a merged folder, not a dist folder")
    shell.refused(3, "verify", road.dist / "model.gguf", says="model.gguf has no edgeqaf.json")
    shell.refused(3, "inspect", tiny_float_model, says="has no edgeqaf.json")
    shell.refused(3, "diff", road.dist, road.base, says="is a dist folder, not a model")
    shell.refused(3, "deploy", road.merged, "--to", "card", says=str(road.merged))


def test_a_flipped_code_of_the_base_is_noticed_before_it_is_merged_or_exported(
    shell: Any, copy: Copy, road: Any
) -> None:
    base, tensor = copy(road.base), "model.layers.0.mlp.down_proj.weight"
    flip_in(base / WEIGHTS, f"{tensor}.codes")
    for line in (
        ("merge", road.run, "--base", base),
        ("merge", road.run, "--base", base, "--dry-run"),
        ("export", base),
    ):
        shell.refused(3, *line, "-o", "out", says=f"{tensor} does not match its digest")
    shell.refused(3, "eval", base, "--data", road.data, says=f"{tensor} does not match its digest")


def test_an_edited_config_of_a_base_is_noticed(shell: Any, copy: Copy, road: Any) -> None:
    base = copy(road.base)
    edit(base / "config.json", rms_norm_eps=0.5)
    shell.refused(3, "export", base, "-o", "out", says="config.json is not the file")
    shell.refused(3, "merge", road.run, "--base", base, "-o", "out", says="config.json is not the file")


def test_an_adapter_of_another_base_is_refused(shell: Any, road: Any, tiny_float_model: Path) -> None:
    other = shell.json("quantize", tiny_float_model, "-o", "other", "--grid", "q8_0")["root"]
    mine = road.said["base"]["root"]
    says = f"was trained on base {mine[:12]}, but other is {other[:12]}"
    shell.refused(3, "merge", road.run, "--base", "other", "-o", "merged", says=says)
    shell.refused(3, "eval", road.run, "--base", "other", "--data", road.data, says=says)


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_damaged_adapter_is_refused(damage: Callable[[Path], None], shell: Any, copy: Copy, road: Any) -> None:
    run = copy(road.run)
    damage(run / "adapter_model.safetensors")
    shell.refused(3, "merge", run, "--base", road.base, "-o", "out", says="adapter_model.safetensors: ")


def test_a_lossy_run_is_not_merged(shell: Any, road: Any) -> None:
    shell.refused(3, "merge", road.lora, "-o", "merged", says="lora cannot be merged exactly")


@pytest.mark.parametrize(
    "entry",
    [{"tensors": []}, {"layers": {"a": {}}}, {"layers": 3}, {"files": {"a": 1}}, {"tensors": {"a": {}}}],
    ids=str,
)
def test_inspect_refuses_a_malformed_manifest(entry: dict[str, Any], shell: Any, copy: Copy, road: Any) -> None:
    folder = copy(road.merged)
    edit(folder / "edgeqaf.json", **entry)
    assert shell.refused(3, "inspect", folder, says="edgeqaf.json is malformed").out == ""


GOOD = '{"prompt": "a", "completion": "b"}\n'
ROWS: dict[str, tuple[str, str | bytes, str]] = {
    "not JSON": ("d.jsonl", GOOD + '{"prompt": \n', "d.jsonl:2: not JSON"),
    "nested too deep": ("d.jsonl", GOOD + "[" * 100_000, "d.jsonl:2: not JSON"),
    "half a surrogate pair": ("d.jsonl", GOOD + '{"prompt": "\\ud800", "completion": "b"}', "d.jsonl:2: not JSON"),
    "a list": ("d.jsonl", GOOD + "[1]\n", "d.jsonl:2: a list"),
    "no completion": ("d.jsonl", GOOD * 2 + '{"prompt": "x"}\n', "d.jsonl:3: 'completion' is missing"),
    "a number for text": (
        "d.jsonl",
        GOOD + '{"prompt": 1, "completion": "x"}',
        "d.jsonl:2: 'prompt' is missing or not",
    ),
    "empty completion": ("d.jsonl", GOOD + '{"prompt": "x", "completion": ""}', "d.jsonl:2: 'completion' is empty"),
    "no rows": ("d.jsonl", "\n \n", "d.jsonl holds no rows"),
    "UTF-16": ("d.jsonl", "x".encode("utf-16"), "d.jsonl is not UTF-8"),
    "rows too long": ("d.jsonl", json.dumps({"prompt": "word " * 999, "completion": "x"}), "all 1 rows are longer"),
    "one column": ("d.csv", "a\n1\n", "columns a cannot be prompt and completion; it has a"),
    "no header": ("d.csv", "", "it has none"),
    "two columns of one name": ("d.csv", "a,a\n1,2\n", "columns a, a cannot be"),
    "a comma without quotes": ("d.csv", "a,b\n1,2\n1,2,3\n", "d.csv:3: more fields than the header's 2"),
    "a short row": ("d.csv", "a,b\n1\n", "d.csv:2: an empty b"),
    "an open quote": ("d.csv", 'a,b\n1,2\n"1,2\n', "d.csv:3: unexpected end of data"),
    "an open quote in the header": ("d.csv", '"a,b\n', "d.csv:1: unexpected end of data"),
}


@pytest.mark.parametrize("fault", ROWS)
def test_a_wrong_row_is_named_by_file_and_line(fault: str, shell: Any, road: Any) -> None:
    name, text, says = ROWS[fault]
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    shell.refused(3, "finetune", road.base, "--data", name, "-o", "run", "--max-length", 48, says=says)


def test_data_that_is_no_file_is_named(shell: Any, road: Any) -> None:
    shell.refused(3, "finetune", road.base, "--data", "no.jsonl", "-o", "run", says="no.jsonl does not exist")
    shell.refused(3, "finetune", road.base, "--data", road.base, "-o", "run", says="is a folder")
    shutil.copyfile(road.data, "d.xlsx")
    shell.refused(2, "finetune", road.base, "--data", "d.xlsx", "-o", "run", says="unknown kind of data file '.xlsx'")


def test_a_line_separator_inside_a_string_is_no_end_of_line(shell: Any, road: Any) -> None:
    Path("d.jsonl").write_text(GOOD + '{"prompt": "a\u2028b\x85c", "completion": "b"}\r\n' + GOOD, "utf-8")
    assert shell.json("finetune", road.base, "--data", "d.jsonl", "-o", "run", "--dry-run")["rows"] == 3
