"""`import edgeqaf` loads neither transformers nor peft, and whichever comes first, both know us once they are there."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeqaf import hf

CHECKOUT = Path(__file__).resolve().parents[2]
KNOWN = """
import transformers.quantizers.auto as followed
assert type(followed.__loader__).__name__ == "SourceFileLoader"  # its own, without a trace of ours
assert followed.__spec__.loader is followed.__loader__
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
assert AUTO_QUANTIZER_MAPPING["edgeqaf"].__name__ == "GridQuantizer"
assert AUTO_QUANTIZATION_CONFIG_MAPPING["edgeqaf"].__name__ == "GridConfig"
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
assert PEFT_TYPE_TO_CONFIG_MAPPING["EDGEQAF"].__name__ == "NoPeftConfig"
"""
ORDERS = {
    "edgeqaf first": "import edgeqaf, transformers, peft",
    "edgeqaf last": "import transformers.quantizers, peft, edgeqaf",
    "a part of edgeqaf": "import edgeqaf.adapters.lora",
}


def python(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False, cwd=CHECKOUT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("order", ORDERS)
def test_both_libraries_know_us(order):
    python(ORDERS[order] + KNOWN)


def test_importing_edgeqaf_imports_no_package_but_its_own():
    ours = "sorted({m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    assert python(f"import sys; before = set(sys.modules)\nimport edgeqaf; print({ours})") == "['edgeqaf']"


def test_the_gguf_exporter_loads_no_compiler_and_no_torch():
    script = "import sys, exporters.gguf; print(sorted({'numba', 'torch', 'transformers'} & set(sys.modules)))"
    assert python(script) == "[]"


def test_announcing_twice_is_announcing_once():
    before = list(sys.meta_path)
    hf.announce()
    assert sys.meta_path == before


def test_another_program_runs_where_transformers_knows_us(tmp_path):
    (tmp_path / "program.py").write_text("import sys\nprint('edgeqaf' in sys.modules, __name__, sys.argv[1:])\n")
    line = [sys.executable, "-m", "edgeqaf.hf", "program", "--flag", "value"]
    environment = os.environ | {"PYTHONPATH": f"{CHECKOUT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "True __main__ ['--flag', 'value']"
    bare = subprocess.run(line[:3], capture_output=True, text=True, check=False, env=environment)
    assert (bare.returncode, bare.stdout) == (1, "")
    assert bare.stderr.startswith("usage: python -m edgeqaf.hf MODULE")


def test_other_imports_are_found_as_ever():
    script = "import edgeqaf, sys, importlib.util as u\nprint(len([f for f in sys.meta_path if type(f).__module__ =="
    script += " 'edgeqaf.hf']), u.find_spec('json').loader.__class__.__name__, u.find_spec('no_such_module'))"
    assert python(script) == "1 SourceFileLoader None"


@pytest.mark.parametrize("module", [*hf.FOLLOWERS, *hf.FOLLOWERS.values()])
def test_what_is_followed_and_what_follows_exist(module):
    assert importlib.import_module(module).__name__ == module
