"""Files and functions short enough to be read, and nothing in them that belongs to one machine."""

import ast
import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
ROOTS = ("edgeqaf", "exporters", "runtime_tests", "devices")
FILE, FUNCTION = 260, 45
ABSOLUTE = re.compile(r"(?<![\w.~/-])/(work|tmp|root|home)/")


def python() -> list[Path]:
    return [file for root in ROOTS for file in sorted((CHECKOUT / root).rglob("*.py"))]


def test_no_file_is_longer_than_a_sitting():
    lengths = {file.relative_to(CHECKOUT): len(file.read_text("utf-8").splitlines()) for file in python()}
    long = [f"{file}: {n} lines, at most {FILE}" for file, n in lengths.items() if n > FILE]
    assert lengths
    assert not long, "\n" + "\n".join(long)


def test_no_function_is_longer_than_a_screen():
    """Signatures are left out: a command's is the table of its options."""
    functions = [
        (file.relative_to(CHECKOUT), node)
        for file in python()
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = [(file, f, f.end_lineno - f.body[0].lineno + 1) for file, f in functions]
    long = [f"{file}:{f.lineno} {f.name}: {n} lines, at most {FUNCTION}" for file, f, n in lengths if n > FUNCTION]
    assert not long, "\n" + "\n".join(long)


def test_no_path_of_one_machine_is_written_down():
    found = []
    for folder in (*ROOTS, "docs", "examples", "README.md", "Makefile", "pyproject.toml"):
        place = CHECKOUT / folder
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if not file.is_file() or "__pycache__" in file.parts or file.suffix == ".safetensors":
                continue
            for number, line in enumerate(file.read_text("utf-8", errors="replace").splitlines(), 1):
                if ABSOLUTE.search(line):
                    found.append(f"{file.relative_to(CHECKOUT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n" + "\n".join(found)


def test_this_test_knows_an_absolute_path_when_it_sees_one():
    for line in ("cd /tmp/x", '"/work/main"', "(/root/.cache)", "=/home/me/x"):
        assert ABSOLUTE.search(line), line
    for line in ("https://example.org/home/x", "a/tmp/b", "./work/x", "~/work/x", "/tmpfs/"):
        assert not ABSOLUTE.search(line), line
