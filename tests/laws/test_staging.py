"""A staged output is there whole or not at all: under errors, full disks, and death at any moment."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from edgeqaf.errors import OutOfResources, UsageError
from edgeqaf.staging import require_new, require_space, staged

KILLS = 30
SIZE = 40_000


def content(generation: int) -> bytes:
    return f"{generation:08d}".encode() * (SIZE // 8)


def is_whole(data: bytes) -> bool:
    return len(data) == SIZE and data == data[:8] * (SIZE // 8)


def write(path: Path, folder: bool, data: bytes) -> None:
    if folder:
        path.mkdir()
        (path / "a").write_bytes(data)
        (path / "sub").mkdir()
        (path / "sub" / "b").write_bytes(data)
    else:
        path.write_bytes(data)


def write_and_fail(target: Path, folder: bool, error: type[BaseException], force: bool = False) -> None:
    with staged(target, force=force) as part:
        write(part, folder, content(1))
        raise error("stop")


def read(path: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [path.read_bytes()]


def child(*arguments: object) -> subprocess.Popen:
    script = [sys.executable, "-c", CHILD, *map(str, arguments)]
    return subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# Replaces argv[1] again and again; with argv[3] it dies before its n-th call of a function that changes the disk.
CHILD = f"""
import itertools, os, signal, sys
from pathlib import Path
from edgeqaf.staging import staged

target, folder, fatal = Path(sys.argv[1]), sys.argv[2] == "folder", int(sys.argv[3])
calls = itertools.count(1)

def mortal(function):
    def call(*arguments, **named):
        if next(calls) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call

if fatal:
    for name in ("rename", "replace", "fsync", "unlink", "rmdir", "mkdir"):
        setattr(os, name, mortal(getattr(os, name)))
print("ready", flush=True)
for generation in range(1, 2 if fatal else 10**6):
    data = f"{{generation:08d}}".encode() * ({SIZE} // 8)
    with staged(target, force=True) as part:
        if folder:
            part.mkdir()
            (part / "sub").mkdir()
            (part / "sub" / "b").write_bytes(data)
        with open(part / "a" if folder else part, "wb") as handle:
            for start in range(0, len(data), 1000):
                handle.write(data[start : start + 1000])
                handle.flush()
"""
each_form = pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])


@each_form
def test_success_renames_and_leaves_nothing_else(tmp_path, folder):
    target = tmp_path / "deep" / "er" / "out"
    with staged(target) as part:
        assert part.parent == target.parent  # a rename cannot cross file systems
        write(part, folder, content(1))
        assert not target.exists()
    assert [p.name for p in target.parent.iterdir()] == ["out"]
    assert set(read(target)) == {content(1)}


@each_form
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, OSError])
def test_an_exception_leaves_nothing(tmp_path, folder, error):
    with pytest.raises(error):
        write_and_fail(tmp_path / "out", folder, error)
    assert list(tmp_path.iterdir()) == []


@each_form
@pytest.mark.parametrize("was_folder", [False, True], ids=["over file", "over folder"])
def test_an_existing_target_is_kept_without_force_and_replaced_with_it(tmp_path, folder, was_folder):
    target = tmp_path / "out"
    write(target, was_folder, content(0))
    with pytest.raises(UsageError, match=f"{target} already exists"), staged(target):
        pytest.fail("the block must not run")
    assert set(read(target)) == {content(0)}
    with pytest.raises(ValueError, match="stop"):
        write_and_fail(target, folder, ValueError, force=True)
    assert set(read(target)) == {content(0)}
    with staged(target, force=True) as part:
        write(part, folder, content(1))
    assert set(read(target)) == {content(1)}
    assert target.is_dir() == folder
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@each_form
def test_a_block_that_writes_nothing_does_not_cost_the_old_output(tmp_path, folder):
    target = tmp_path / "out"
    write(target, folder, content(0))
    with pytest.raises(FileNotFoundError), staged(target, force=True):
        pass
    assert set(read(target)) == {content(0)}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("points_at", ["a file", "a folder", "nothing"])
def test_a_symbolic_link_is_refused_and_what_it_points_at_kept(tmp_path, force, points_at):
    real, target = tmp_path / "real", tmp_path / "out"
    if points_at != "nothing":
        write(real, points_at == "a folder", content(0))
    target.symlink_to(real)
    with pytest.raises(UsageError, match=f"{target} is a symbolic link"), staged(target, force=force):
        pytest.fail("the block must not run")
    assert target.is_symlink()
    assert points_at == "nothing" or set(read(real)) == {content(0)}


@each_form
@pytest.mark.parametrize("suffix", [".part", ".old"])
def test_what_a_killed_process_of_the_same_number_left_is_replaced_and_not_reused(tmp_path, folder, suffix):
    target = tmp_path / "out"  # in containers process numbers repeat from run to run
    with staged(target) as part:
        stale = part.with_suffix(suffix)
        write(part, folder, content(1))
    write(stale, True, content(0))
    with staged(target, force=True) as part:
        assert not part.exists()
        write(part, folder, content(2))
    assert set(read(target)) == {content(2)}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@each_form
def test_every_file_is_on_the_disk_before_the_rename_and_the_rename_before_the_end(tmp_path, monkeypatch, folder):
    target, done = tmp_path / "out", []
    fsync, rename, replace = os.fsync, os.rename, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(os.fstat(handle).st_ino), fsync(handle)))
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append("renamed"), rename(a, b)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("renamed"), replace(a, b)))
    with staged(target) as part:
        write(part, folder, content(1))
        written = {p.stat().st_ino for p in [part, *part.rglob("*")]}
        assert done == []
    renamed = done.index("renamed")
    assert set(done[:renamed]) == written
    assert done[renamed + 1 :] == [tmp_path.stat().st_ino]


def test_a_relative_target_is_written_where_it_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with staged(Path("out")) as part:
        part.write_bytes(content(1))
    assert read(tmp_path / "out") == [content(1)]


@each_form
def test_killed_at_a_random_moment_old_or_new_is_whole(tmp_path, folder):
    dice = random.Random(8)
    target = tmp_path / "out"
    for _ in range(KILLS // 2):
        write(target, folder, content(0))
        process = child(target, "folder" if folder else "file", 0)
        assert process.stdout.readline() == "ready\n"
        time.sleep(dice.random() * 0.03)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        survivor = target if target.exists() else only_old(tmp_path)
        assert all(is_whole(data) for data in read(survivor))
        assert len(set(read(survivor))) == 1
        empty(tmp_path)


@each_form
def test_killed_before_each_change_of_the_disk_old_or_new_is_whole(tmp_path, folder):
    target, seen, fatal = tmp_path / "out", set(), 0
    while True:
        fatal += 1
        write(target, folder, content(0))
        process = child(target, "folder" if folder else "file", fatal)
        _, error = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), error
        # Two renames swap a folder, so between them only the hidden old one is there; a file is never absent.
        survivor = target if not folder or target.exists() else only_old(tmp_path)
        (data,) = set(read(survivor))
        assert data in (content(0), content(1))
        seen.add(data)
        empty(tmp_path)
        if process.returncode == 0:
            break
    assert fatal >= 4
    assert seen == {content(0), content(1)}


def only_old(folder: Path) -> Path:
    (old,) = folder.glob(".*.old")
    return old


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from edgeqaf.checkpoint import QModel, save
from edgeqaf.errors import OutOfResources
from edgeqaf.staging import staged

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
target, source, how = (Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
try:
    if how == "bytes":
        with staged(target, force=True) as part:
            part.write_bytes(bytes(100_000))
    else:
        values = np.random.default_rng(0).normal(size=(200, 200)).astype(np.float32)
        save(QModel({}, {"w": values}, source), target, kind="base", parent=None, options={}, force=True)
except OutOfResources as error:
    print(error)
    print(error.remedy)
"""


@pytest.mark.parametrize("how", ["bytes", "model"])
def test_a_disk_that_fills_up_while_writing_is_out_of_resources_and_costs_nothing(tmp_path, how):
    target, source = tmp_path / "out", tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}", "utf-8")
    write(target, how == "model", content(0))
    script = [sys.executable, "-c", LIMITED, str(target), str(source), how]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cause, remedy = done.stdout.splitlines()
    assert cause.startswith(f"{target}: the disk filled up while writing (")
    assert "nothing was left behind" in remedy
    assert set(read(target)) == {content(0)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


def test_too_small_a_disk_is_refused_with_both_numbers_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 2_500_000, 2_500_000))
    target = tmp_path / "not" / "yet" / "out"
    require_space(target, 2_500_000)
    small = pytest.raises(OutOfResources, match=r"out needs 7\.0 MB, 2\.5 MB are free")
    with small, staged(target, needed_bytes=7_000_000):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_require_new_looks_and_touches_nothing(tmp_path):
    require_new(tmp_path / "absent")
    (tmp_path / "present").touch()
    require_new(tmp_path / "present", force=True)
    with pytest.raises(UsageError, match="present already exists"):
        require_new(tmp_path / "present")
    assert [p.name for p in tmp_path.iterdir()] == ["present"]
