"""A file changed in place survives being killed at any write, cut anywhere: each step is done or not done."""

from pathlib import Path

import pytest

from edgeqaf.errors import Refused
from edgeqaf.patch import journal
from edgeqaf.patch.journal import BLANK, Journal, journal_of

CONTENT = bytes(range(1, 201)) * 3
STEPS = [[(10, b"a" * 50), (300, b"b" * 7)], [(60, b"c" * 90)], [(596, b"dddd"), (4, b"e")]]


class Killed(BaseException):
    pass


def states() -> list[bytes]:
    """The file's content before the first step, after it, and so on."""
    found = [CONTENT]
    for edits in STEPS:
        content = bytearray(found[-1])
        for offset, new in edits:
            content[offset : offset + len(new)] = new
        found.append(bytes(content))
    return found


def work(path: Path) -> None:
    """Go on from wherever the file is, and finish."""
    with Journal(path) as opened:
        done = (opened.state or {"done": 0})["done"]
        for k in range(done, len(STEPS)):
            opened.step({"done": k}, {"done": k + 1}, STEPS[k])
        opened.finish()


def killed_at(monkeypatch: pytest.MonkeyPatch, path: Path, write: int, share: float) -> bool:
    """`work`, killed in the ``write``th write after a share of its bytes; whether it came to that."""
    whole, count = journal._write, iter(range(10**6))

    def cut(file, data):
        if next(count) == write:
            whole(file, data[: int(len(data) * share)])
            raise Killed
        whole(file, data)

    with monkeypatch.context() as patched:
        patched.setattr(journal, "_write", cut)
        try:
            work(path)
        except Killed:
            return True
    return False


def is_whole_or_unusable(path: Path) -> bool:
    """Whether the file is what it was, or what it is to be, or one that nobody takes for either."""
    content = path.read_bytes()
    return content in (states()[0], states()[-1]) or content[: len(BLANK)] != CONTENT[: len(BLANK)]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "model"
    file.write_bytes(CONTENT)
    return file


def test_steps_are_made_and_nothing_else_is_left(path):
    work(path)
    assert path.read_bytes() == states()[-1]
    assert [p.name for p in path.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("share", [0, 0.3, 0.99, 1])
def test_killed_at_any_write_every_step_is_done_or_not(share, path, monkeypatch):
    write = 0
    while True:
        path.write_bytes(CONTENT)
        journal_of(path).unlink(missing_ok=True)
        if not killed_at(monkeypatch, path, write, share):
            break
        assert is_whole_or_unusable(path)
        with Journal(path) as found:
            done = (found.state or {"done": 0})["done"]
            assert found.read(0, len(CONTENT)) == states()[done]
        for again in range(12):  # and killed anew while it recovers and goes on
            if not killed_at(monkeypatch, path, again, share):
                break
            assert is_whole_or_unusable(path)
        work(path)
        assert path.read_bytes() == states()[-1]
        assert not journal_of(path).exists()
        write += 1
    assert write >= 2 * len(STEPS) + 3


def test_the_first_bytes_are_blank_while_it_works(path):
    with Journal(path) as opened:
        opened.step({"done": 0}, {"done": 1}, STEPS[0])
        assert path.read_bytes()[: len(BLANK)] == BLANK
        assert opened.read(0, 8) == CONTENT[:8]
        opened.finish()
    assert path.read_bytes()[:8] == CONTENT[:8]


def test_two_processes_do_not_change_one_file(path):
    with Journal(path), pytest.raises(Refused, match=f"{path} is being changed by another process"):
        Journal(path)


def test_a_damaged_journal_is_told(path):
    with Journal(path) as opened:
        opened.step({"done": 0}, {"done": 1}, STEPS[0])
    journal_of(path).write_bytes(b"nothing")
    with pytest.raises(Refused, match=f"{path} is half changed"):
        Journal(path)


def test_reading_beyond_the_end_is_refused(path):
    with Journal(path) as opened, pytest.raises(Refused, match="ends before byte 601"):
        opened.read(600, 1)
