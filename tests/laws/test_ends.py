"""Embedding and head on a grid of their own: chosen as a matrix is, named where they do not fit, no linear another."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from edgeqaf import plugins, runs
from edgeqaf.calibration import Calibration
from edgeqaf.errors import Refused
from edgeqaf.qtensor import decode
from edgeqaf.quantize import plan, quantize
from edgeqaf.quantizer import OntoGrid, misfits
from edgeqaf.source import EMBEDDING, ENDS, HEAD, FloatModel

ONTO_GRID = [name for name in plugins.names("quantizers") if isinstance(plugins.find("quantizers", name), OntoGrid)]
ONE_LEVEL = [name for name in plugins.names("grids") if plugins.find("grids", name).levels is None]
WHOLE = "tq2_0"  # its block of 256 does not divide the tiny model's rows of 64


@pytest.fixture(scope="module")
def untied(tiny_float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a head of its own; read-only."""
    folder = tmp_path_factory.mktemp("untied") / "model"
    shutil.copytree(tiny_float_model, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}), "utf-8")
    arrays = load_file(folder / "model.safetensors")
    head = np.random.default_rng(3).normal(0, 0.1, arrays[EMBEDDING].shape).astype(ml_dtypes.bfloat16)
    save_file(arrays | {HEAD: head}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What each quantizer needs beside the grids."""
    text = tmp_path_factory.mktemp("text") / "calib.txt"
    text.write_text("the fox asked the frog why rain is wet " * 100, "utf-8")
    return {"gptq": {"calib": text, "calib_tokens": 512}}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", ONTO_GRID)
def test_each_end_is_quantized_as_a_matrix_is(name, untied, options, tmp_path):
    base = quantize(untied, tmp_path / "base", "q4_1", name, ends="q8_0", **options.get(name, {}))
    rule, source = plugins.find("quantizers", "rtn" if name == "gptq" else name), FloatModel(untied)
    for end in ENDS:
        alone = rule(source[end], plugins.find("grids", "q8_0"))
        assert base.tensors[end].grid.name == "q8_0"
        assert np.array_equal(base.tensors[end].codes, alone.codes)
        assert np.array_equal(base.tensors[end].scale, alone.scale)
    assert base.manifest["options"].items() >= {"grid": "q4_1", "ends": "q8_0", "quantizer": name}.items()


@pytest.mark.parametrize("name", ["rtn", "absmax"])
def test_no_other_tensor_is_another_for_it(name, untied, tmp_path):
    ends, plain = (quantize(untied, tmp_path / out, "q4_0", name, **more).digests()
                   for out, more in (("ends", {"ends": "q8_0"}), ("plain", {})))  # fmt: skip
    assert {name for name in plain if ends[name] != plain[name]} == set(ENDS)


def test_gptq_sees_the_quantized_embedding_before_the_first_layer(untied, options, tmp_path, monkeypatch):
    """The layers are other than they are behind a float embedding."""
    met, made = [], Calibration.__init__

    def noted(self, config, tensors, ids):
        made(self, config, tensors, ids)
        met.append((ids, [hidden.clone() for hidden in self._hidden]))

    monkeypatch.setattr(Calibration, "__init__", noted)
    base = quantize(untied, tmp_path / "base", "q3_0", "gptq", ends="q2_0", **options["gptq"])
    (ids, hidden), rows = met[0], decode(base.tensors[EMBEDDING])
    for sequence, given in zip(ids, hidden, strict=True):
        assert np.array_equal(given[0].numpy(), rows[sequence.numpy()])
    assert len(met) == 1
    plain = quantize(untied, tmp_path / "plain", "q3_0", "gptq", **options["gptq"])
    assert plain.digests()["model.layers.0.mlp.up_proj.weight"] != base.digests()["model.layers.0.mlp.up_proj.weight"]


def test_a_tied_head_has_no_tensor_of_its_own(tiny_float_model, tmp_path):
    base = quantize(tiny_float_model, tmp_path / "base", "q4_0", "absmax", ends="q4_0")
    assert HEAD not in base.tensors
    assert {grid for name, (grid, _) in base.outline().items() if not name.endswith("norm.weight")} == {"q4_0"}


@pytest.mark.parametrize("grid", ONE_LEVEL)
def test_what_is_planned_is_what_is_stored(grid, untied, tmp_path):
    planned = plan(untied, "q4_0", grid)
    base = quantize(untied, tmp_path / "base", "q4_0", "absmax", ends=grid)
    assert planned.stored == {name: kind for name, (kind, _) in base.outline().items()}
    lost = [] if plugins.find("grids", grid).fits(64) else list(ENDS)
    assert planned.misfits == sorted(lost) == list(misfits(base))
    assert set(misfits(base).values()) == ({grid} if lost else set())


def test_some_grid_fits_no_end(untied):
    assert plan(untied, "q4_0", WHOLE).misfits == sorted(ENDS)
    assert plan(untied, "q4_0").misfits == []


def test_linears_that_do_not_fit_are_refused_though_the_ends_would(untied):
    with pytest.raises(Refused, match=rf"no linear weight fits {WHOLE}'s block of 256; .* has rows of (64|96)"):
        plan(untied, WHOLE, "q8_0")


def test_the_size_of_a_run_changes_no_byte(untied, tmp_path, monkeypatch):
    whole = quantize(untied, tmp_path / "whole", "q4_0", "rtn", ends="q8_0")
    read, rows = [], FloatModel.rows
    monkeypatch.setattr(runs, "RUN", 64 * 100)
    monkeypatch.setattr(
        FloatModel, "rows", lambda self, name: lambda i, j: (read.append((name, j - i)), rows(self, name)(i, j))[1]
    )
    cut = quantize(untied, tmp_path / "cut", "q4_0", "rtn", ends="q8_0")
    assert max(count for name, count in read if name in ENDS) == 100
    assert cut.root == whole.root


@pytest.mark.parametrize("end", ENDS)
def test_an_end_that_is_no_matrix_is_refused(end, untied, tmp_path):
    folder = Path(shutil.copytree(untied, tmp_path / "model"))
    arrays = load_file(folder / "model.safetensors")
    save_file(arrays | {end: arrays[end].reshape(-1)}, folder / "model.safetensors")
    with pytest.raises(Refused, match=rf"{end} has shape \[262144\], not \[out, in\]"):
        plan(folder, "q4_0", "q8_0")
