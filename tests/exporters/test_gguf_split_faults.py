"""Split files that are not one model, or not whole, are refused by name; damage is refused, or comes back."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_files import given_back, write_least

from edgeqaf import checkpoint
from edgeqaf.errors import EdgeqafError, Refused
from edgeqaf.exportoptions import ExportOptions
from exporters.gguf import exporter
from exporters.gguf.artifact import SIZES, StoredTensors
from exporters.gguf.container import Type, Value, describe_tensors, plain_header
from exporters.gguf.reader import parse
from exporters.gguf.split import COUNT, KEYS, NUMBER, TENSORS

FIRST, SECOND, THIRD = (f"least-0000{i}-of-00003.gguf" for i in (1, 2, 3))


@pytest.fixture(scope="module")
def least(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the least Llama in three files; read-only."""
    folder = tmp_path_factory.mktemp("least")
    write_least(folder / "least.gguf", {"split_max_tensors": 4})
    assert sorted(path.name for path in folder.iterdir()) == [FIRST, SECOND, THIRD]
    return folder


@pytest.fixture
def copy(least: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(least, tmp_path / "copy"))


def rewrite(path: Path, without: str = "", more: tuple[str, ...] = (), **changes: Value) -> None:
    """A file's header anew: metadata changed, a key left out, tensors of other names at the end."""
    parsed = parse(path, SIZES)
    metadata = {k: v for k, v in {**parsed.metadata, **changes}.items() if k != without}
    tensors = [(n, i.shape, i.type, i.size) for n, i in parsed.tensors.items()]
    data = path.read_bytes()[parsed.start :]
    last = list(parsed.tensors.values())[-1]
    tensors += [(name, *tensors[-1][1:]) for name in more]
    data += data[last.offset :] * len(more)
    path.write_bytes(plain_header(metadata, describe_tensors(tensors)) + data)


def key(name: str, value: int, kind: Type | None = None) -> dict[str, Value]:
    return {name: Value(KEYS[name] if kind is None else kind, value)}


Fault = Callable[[Path], object]
FAULTS: dict[str, tuple[Fault, str]] = {
    "second missing": (lambda d: (d / SECOND).unlink(), f"{SECOND} is missing: {FIRST} is the first of 3 files"),
    "last missing": (lambda d: (d / THIRD).unlink(), f"{THIRD} is missing"),
    "second is a folder": (lambda d: [(d / SECOND).unlink(), (d / SECOND).mkdir()], f"{SECOND} is not a regular file"),
    "second is a pipe": (lambda d: [(d / SECOND).unlink(), os.mkfifo(d / SECOND)], f"{SECOND} is not a regular file"),
    "second twice": (
        lambda d: shutil.copy(d / SECOND, d / THIRD),
        f"{THIRD}: file 2 of 3 with 11 tensors in all by its metadata, file 3 of 3 with 11 expected",
    ),
    "first twice": (lambda d: shutil.copy(d / FIRST, d / SECOND), f"{SECOND}: file 1 of 3"),
    "second and third exchanged": (lambda d: exchange(d / SECOND, d / THIRD), f"{SECOND}: file 3 of 3"),
    "second and first exchanged": (
        lambda d: exchange(d / SECOND, d / FIRST), f"{FIRST}: by its metadata file 2 of 3, by its name file 1 of 3"
    ),
    "second of four": (lambda d: rewrite(d / SECOND, **key(COUNT, 4)), f"{SECOND}: file 2 of 4 with 11"),
    "second of none": (lambda d: rewrite(d / SECOND, **key(COUNT, 0)), f"{SECOND}: file 1 of 1 with 4"),
    "second without count": (lambda d: rewrite(d / SECOND, COUNT), f"{SECOND}: file 1 of 1 with 4"),
    "second without number": (lambda d: rewrite(d / SECOND, NUMBER), f"{SECOND}: metadata {NUMBER} is missing"),
    "second without total": (lambda d: rewrite(d / SECOND, TENSORS), f"{SECOND}: metadata {TENSORS} is missing"),
    "second of another total": (lambda d: rewrite(d / SECOND, **key(TENSORS, 12)), f"{SECOND}: file 2 of 3 with 12"),
    "first of four": (lambda d: rewrite(d / FIRST, **key(COUNT, 4)), f"{FIRST}: by its metadata file 1 of 4"),
    "first of one": (lambda d: rewrite(d / FIRST, **key(COUNT, 1)), f"{FIRST}: by its metadata file 1 of 1"),
    "first of none": (lambda d: rewrite(d / FIRST, **key(COUNT, 0)), f"{FIRST}: by its metadata file 1 of 1"),
    "first without count": (lambda d: rewrite(d / FIRST, COUNT), f"{FIRST}: by its metadata file 1 of 1"),
    "first is third": (lambda d: rewrite(d / FIRST, **key(NUMBER, 2)), f"{FIRST}: by its metadata file 3 of 3"),
    "count in 32 bits": (
        lambda d: rewrite(d / FIRST, **key(COUNT, 3, Type.UINT32)), f"metadata {COUNT} is of type UINT32, not a UINT16"
    ),
    "total in unsigned": (
        lambda d: rewrite(d / FIRST, **key(TENSORS, 11, Type.UINT32)), f"metadata {TENSORS} is of type UINT32, not a IN"
    ),
    "negative total": (
        lambda d: [rewrite(d / name, **key(TENSORS, -1)) for name in (FIRST, SECOND, THIRD)],
        f"{TENSORS} is -1, the files have 11 tensors",
    ),
    "one tensor fewer": (
        lambda d: [rewrite(d / name, **key(TENSORS, 12)) for name in (FIRST, SECOND, THIRD)],
        f"{TENSORS} is 12, the files have 11 tensors",
    ),
    "a tensor twice": (
        lambda d: rewrite(d / THIRD, more=("blk.0.attn_q.weight",)),
        f"{THIRD}: tensor blk.0.attn_q.weight is in {SECOND} too",
    ),
    "a tensor too many": (
        lambda d: [rewrite(d / name, **key(TENSORS, 12)) for name in (FIRST, SECOND)]
        and rewrite(d / THIRD, more=("blk.0.attn_x.weight",), **key(TENSORS, 12)),
        "blk.0.attn_x.weight is not part of this model",
    ),
    "second sealed": (
        lambda d: rewrite(d / SECOND, **{"edgeqaf.header_sha256": Value(Type.STRING, b"0" * 64)}),
        f"{SECOND}: edgeqaf.header_sha256 is 0000",
    ),
    "renamed": (lambda d: (d / FIRST).rename(d / "model.gguf"), "model.gguf: by its metadata file 1 of 3, by its name"),
    "another prefix": (
        lambda d: (d / FIRST).rename(d / "m-00001-of-00003.gguf"), "m-00002-of-00003.gguf is missing"
    ),
}  # fmt: skip


def exchange(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_are_not_one_model_are_refused_by_name(fault, copy):
    spoil, says = FAULTS[fault]
    spoil(copy)
    first = copy / FIRST if (copy / FIRST).exists() else next(iter(copy.glob("m*.gguf")))
    with pytest.raises(Refused) as refused:
        StoredTensors(first)
    assert says in refused.value.cause


@pytest.mark.parametrize("name", [SECOND, THIRD])
def test_any_file_but_the_first_is_refused_with_its_name(name, least):
    with pytest.raises(Refused, match=f"{name} is file {name[10]} of 3") as refused:
        StoredTensors(least / name)
    assert refused.value.remedy == f"name the first: {least / FIRST}"


def test_a_whole_file_that_is_named_as_a_part_is_refused(tmp_path):
    path = write_least(tmp_path / FIRST)
    with pytest.raises(Refused, match="by its metadata file 1 of 1, by its name file 1 of 3"):
        StoredTensors(path)


def test_cut_at_any_byte_the_second_file_is_refused(copy, tmp_path):
    assert given_back(copy / FIRST, tmp_path / "folder") == [(copy / n).read_bytes() for n in (FIRST, SECOND, THIRD)]
    whole, start = (copy / SECOND).read_bytes(), parse(copy / SECOND, SIZES).start
    for size in [*range(start), *range(start, len(whole), 97), len(whole) - 1]:
        (copy / SECOND).write_bytes(whole[:size])
        assert given_back(copy / FIRST, tmp_path / "folder") is None, size
    for more in (1, 32, 4096):
        (copy / SECOND).write_bytes(whole + bytes(more))
        assert given_back(copy / FIRST, tmp_path / "folder") is None, more


@pytest.mark.parametrize("name", [SECOND, THIRD])
@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_of_a_later_header_is_refused_or_comes_back(bit, name, copy, tmp_path):
    files = {path.name: path.read_bytes() for path in sorted(copy.iterdir())}
    for place in range(parse(copy / name, SIZES).start):
        damaged = bytearray(files[name])
        damaged[place] ^= 1 << bit
        (copy / name).write_bytes(damaged)
        found = given_back(copy / FIRST, tmp_path / "folder")
        assert found is None or found == [*(files | {name: damaged}).values()], place


def test_a_flipped_bit_of_a_later_header_of_ours_is_refused(tiny_base, tmp_path):
    base = replace(checkpoint.load(tiny_base), asked=ExportOptions(split_max_bytes=100_000))
    first = exporter.export(base, tmp_path / "model.gguf")
    second = sorted(tmp_path.iterdir())[1]
    whole, rng = second.read_bytes(), np.random.default_rng(0)
    for place in range(0, parse(second, SIZES).start, 5):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        second.write_bytes(damaged)
        with pytest.raises(EdgeqafError):
            StoredTensors(first)


EXPORT = """
import os, signal, sys
from edgeqaf import cli
from exporters.gguf import fresh
whole = fresh.write_tensor
def write_tensor(file, rows, place, info, grid):
    whole(file, rows, place, info, grid)
    if info.name == "blk.1.ffn_up.weight":
        os.kill(os.getpid(), signal.SIGKILL)
fresh.write_tensor = write_tensor
sys.exit(cli.run(sys.argv[1:]))
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def line(base: Path, out: Path) -> list[str]:
    return ["export", str(base), "-o", str(out), "--format", "gguf", "--split-max-size", "1M"]


def test_killed_between_two_files_an_export_leaves_nothing(tiny_base, tmp_path):
    out = tmp_path / "out" / "dist"
    done = subprocess.run([sys.executable, "-c", EXPORT, *line(tiny_base, out)], env=ENVIRONMENT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [file.name for file in out.parent.iterdir() if not file.name.startswith(".")] == []


def test_a_full_disk_leaves_nothing(tiny_base, tmp_path):
    out = tmp_path / "out" / "dist"
    limits = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # noqa: E731
    script = "from edgeqaf.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, *line(tiny_base, out)],
        capture_output=True, text=True, env=ENVIRONMENT, preexec_fn=limits, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "the disk filled up while writing" in done.stderr
    assert list(out.parent.iterdir()) == []
