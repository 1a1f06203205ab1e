"""Documentation that runs: examples, command lines, links and generated pages are held against the code.

A block after ``<!-- run -->`` is executed, all of one page in one namespace. A block after
``<!-- file: PATH -->`` is a file that the page tells to write: all of them are dropped into a copy of
the packages, and used there.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from safetensors.numpy import load_file, save_file

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS = CHECKOUT / "docs"
GENERATED = DOCS / "reference" / "cli.md"
PAGES = sorted(p for p in [*CHECKOUT.glob("*.md"), *DOCS.rglob("*.md")])
BLOCK = re.compile(r"^(?:<!-- (?P<mark>[^>]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^\s*(?:- run: |\$ )?edgeqaf (.+)$")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))


def marked(page: Path, mark: str) -> list[tuple[str, str]]:
    """(what follows ``mark:`` in the comment, text) of each block of ``page`` marked so."""
    found = [(m["mark"].partition(": "), m["text"]) for m in BLOCK.finditer(page.read_text("utf-8")) if m["mark"]]
    return [(name, text) for (word, _, name), text in found if word == mark]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_cli", DOCS / "reference" / "generate_cli.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_reference_is_up_to_date():
    assert GENERATED.read_text("utf-8") == generator().page(), "run: python docs/reference/generate_cli.py"


@pytest.mark.parametrize("page", [p for p in PAGES if marked(p, "run")], ids=lambda page: page.name)
def test_marked_blocks_run(page, monkeypatch, capsys):
    monkeypatch.chdir(CHECKOUT)
    namespace: dict[str, object] = {"__name__": "example"}
    for number, (_, text) in enumerate(marked(page, "run"), 1):
        exec(compile(text, f"{page.name}, block {number}", "exec"), namespace)


@each_page
def test_python_blocks_compile(page):
    for match in BLOCK.finditer(page.read_text("utf-8")):
        if match["language"] == "python":
            compile(match["text"], page.name, "exec")


@each_page
def test_workflows_are_yaml_whose_steps_do_something(page):
    for match in BLOCK.finditer(page.read_text("utf-8")):
        if match["language"] != "yaml":
            continue
        content = yaml.safe_load(match["text"])
        steps = [step for job in content.get("jobs", {}).values() for step in job["steps"]]
        assert all(("run" in step) != ("uses" in step) for step in steps)


def command_lines(page: Path) -> Iterator[tuple[str, bool]]:
    """(what follows ``edgeqaf``, whether it must be complete): lines of code blocks, and commands within text."""
    text = page.read_text("utf-8")
    fenced = "\n".join(m["text"] for m in BLOCK.finditer(text) if m["language"] != "python")
    prose = BLOCK.sub("", text)
    lines = [*fenced.splitlines(), *(line for line in prose.splitlines() if line.startswith("    "))]
    yield from ((m[1], True) for line in lines if (m := COMMAND.match(line)))
    yield from ((" ".join(m[1].split()), False) for m in re.finditer(r"`edgeqaf ([^`]+)`", prose))


def fault(line: str, complete: bool, commands: dict[str, object]) -> str | None:
    """What is wrong with a command line, or None."""
    words = shlex.split(line, comments=True)
    path = "edgeqaf"
    while words and f"{path} {words[0]}" in commands:
        path = f"{path} {words.pop(0)}"
    command = commands[path]
    if hasattr(command, "commands") and words and not words[0].startswith("-"):
        return f"{path} has no such command: {words[0]}"
    known = {name: p for p in command.params if p.param_type_name == "option" for name in p.opts}
    places = [p for p in command.params if p.param_type_name == "argument"]
    given, positional = set(), 0
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            positional += 1
            continue
        name, equals, _ = word.partition("=")
        if name not in known:
            return f"{path} has no option {name}"
        given.add(known[name].name)
        if not known[name].is_flag and not equals and (not words or words.pop(0).startswith("-")):
            return f"{name} needs a value"
    if positional > len(places) and not any(p.nargs == -1 for p in places):
        return f"{path} takes {len(places)} arguments, not {positional}"
    missing = [p.name for p in places[positional:] if p.required]
    missing += [p.name for p in known.values() if p.required and p.name not in given]
    if complete and "config" not in given and missing:
        return f"{path} needs {', '.join(missing)}"
    return None


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED], ids=lambda page: page.name)
def test_command_lines_are_the_ones_there_are(page):
    commands = dict(generator().commands())
    wrong = [f"edgeqaf {line}: {f}" for line, complete in command_lines(page) if (f := fault(line, complete, commands))]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("quantise m -o x", "no such command"), ("quantize m -o x --gird q4_0", "no option --gird"),
        ("quantize m", "needs output"), ("quantize m -o", "-o needs a value"), ("diff a b c", "takes 2 arguments"),
        ("devices fir m", "no such command"), ("merge -o x", "needs run"),
    ],
)  # fmt: skip
def test_this_test_sees_a_wrong_command_line(line, cause):
    assert cause in fault(line, True, dict(generator().commands()))


@each_page
def test_relative_links_resolve(page):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text("utf-8"))):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            wrong.append(target)
    assert not wrong


def anchors(page: Path) -> set[str]:
    """The ids that a Markdown page's headings get."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


USE = """
from edgeqaf.cli import run
for line in {lines!r}:
    assert run(line.split()) == 0, line
"""


def one_layer_of_storyteller(folder: Path) -> Path:
    """The demo model cut down to its first layer: real sizes, and small enough for numpy."""
    source = CHECKOUT / "examples" / "storyteller-6m"
    shutil.copytree(source, folder)
    config = json.loads((source / "config.json").read_text("utf-8")) | {"num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tensors = load_file(source / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if ".layers." not in n or ".0." in n}, folder / "model.safetensors")
    return folder


def test_every_file_that_a_page_tells_to_write_works(tmp_path):
    for package in ("edgeqaf", "exporters", "runtime_tests", "devices"):
        shutil.copytree(CHECKOUT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    written = dict(file for page in PAGES for file in marked(page, "file"))
    for name, text in written.items():
        assert not (tmp_path / name).exists(), f"{name} is there already"
        (tmp_path / name).write_text(text, "utf-8")
    stems = {Path(name).parent.name: Path(name).stem for name in written}
    rows = [{"prompt": f"say {word}", "completion": word} for word in ("one", "two", "three", "four")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    lines = [
        f"quantize {one_layer_of_storyteller(tmp_path / 'model')} -o base --grid {stems['grids']} --quantizer clipped",
        f"finetune base --data rows.jsonl -o run --method {stems['adapters']} --set rank=2 --lr 5 --steps 2 --batch 2",
        "merge run -o merged",
        f"export merged -o dist --format {stems['exporters']}",
        f"verify dist --runtime {stems['runtimes']},torch --require R2,R4",
        f"eval dist --runtime {stems['runtimes']} --data rows.jsonl --rows 1",
        f"devices show {stems['profiles']}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", USE.format(lines=lines)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "dist" / "verify.json").read_text("utf-8"))
    verdicts = {(c["rung"], c["subject"].split()[0]): c["verdict"] for c in report["checks"]}
    assert [verdicts[rung, stems["runtimes"]] for rung in ("R1", "R2", "R4")] == ["exact", "exact", "bounded"]
