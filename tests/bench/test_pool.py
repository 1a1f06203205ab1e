"""Children that take work: errors arrive with their type, a death is a finding, nobody outlives the parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import workers

from edgeqaf.bench.pool import work_off
from edgeqaf.errors import EdgeqafError, Refused, UsageError


def test_every_item_is_done_once_by_as_many_children_as_asked(tmp_path):
    files = [tmp_path / f"{i}" for i in range(6)]
    assert dict(work_off(workers.write, files, 2)) == dict.fromkeys(files)
    children = {file.read_text("utf-8") for file in files}
    assert 1 <= len(children) <= 2
    assert str(os.getpid()) not in children


def test_what_stops_an_item_is_told_and_the_others_go_on():
    found = dict(work_off(workers.fail, ["die", "usage", "defect", "fine"], 1))
    assert isinstance(found["die"], Refused)
    assert found["die"].cause == "its process died (exit 3)"
    assert isinstance(found["usage"], UsageError)
    assert (found["usage"].cause, found["usage"].remedy) == ("no such usage", "use another")
    assert type(found["defect"]) is EdgeqafError
    assert found["defect"].cause == "internal error: KeyError: 'defect'"
    assert found["fine"] is None


def test_children_end_when_nobody_listens(tmp_path):
    listening = work_off(workers.write, [tmp_path / "a", tmp_path / "b"], 1)
    next(listening)
    child = psutil.Process(int((tmp_path / "a").read_text("utf-8")))
    listening.close()
    assert not child.is_running()


def test_a_killed_parent_leaves_no_child(tmp_path):
    file = tmp_path / "pid"
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import workers\nfrom edgeqaf.bench.pool import work_off\n"
        f"if __name__ == '__main__': list(work_off(workers.stubborn, [{str(file)!r}], 1))\n"
    )
    (tmp_path / "parent.py").write_text(script, "utf-8")
    checkout = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], env=os.environ | {"PYTHONPATH": str(checkout)})
    child = psutil.Process(int(_waited(lambda: file.is_file() and file.read_text("utf-8"))))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _waited(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def _waited(condition):
    """What ``condition`` says once it is true, within a minute."""
    for _ in range(600):
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("waited a minute")
