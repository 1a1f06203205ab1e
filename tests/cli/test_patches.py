"""The verbs of task patches, on the road's own models: from folders, on exported files."""

import shutil
import signal
import subprocess
import sys
from typing import Any

from edgeqaf.patch.journal import journal_of


def test_a_patch_makes_the_exported_base_the_exported_model_and_back(shell: Any, road: Any) -> None:
    shell.ok("export", road.base, "--format", "gguf", "-o", "shipped")
    shipped, tuned = shell.folder / "shipped/model.gguf", road.dist / "model.gguf"
    made = shell.json("diff", road.merged, road.base, "-o", "task.eqpatch")
    assert made["codes"] == shell.json("diff", tuned, shipped)["codes"] > 0
    assert made["bytes"] == (shell.folder / "task.eqpatch").stat().st_size
    device = shell.folder / "model.gguf"
    shutil.copy(shipped, device)
    assert shell.json("patch", "verify", device, "task.eqpatch")["state"] == "not applied"
    said = shell.json("patch", "apply", device, "task.eqpatch")
    assert (said["was"], said["is"], said["root"], said["codes"]) == (
        "not applied", "applied", made["roots"][0], made["codes"]
    )  # fmt: skip
    assert device.read_bytes() == tuned.read_bytes()
    assert "was already applied" in shell.ok("patch", "apply", device, "task.eqpatch").out
    assert shell.json("patch", "revert", device, "task.eqpatch")["root"] == made["roots"][1]
    assert device.read_bytes() == shipped.read_bytes()
    shell.refused(2, "diff", road.merged, road.base, "-o", "task.eqpatch", says="task.eqpatch already exists")
    shell.refused(3, "patch", "apply", device, shipped, says="shipped/model.gguf: its header would take")
    changed = bytearray(device.read_bytes())
    changed[-1] ^= 1
    device.write_bytes(changed)
    for verb, code in (("apply", 3), ("revert", 3), ("verify", 4)):
        shell.refused(code, "patch", verb, device, "task.eqpatch", says="is for root")


SLOW = """
import sys, time
from edgeqaf import cli
from edgeqaf.patch import journal, target
target.STEP = 1
# It stops after its first step, until a signal comes.
whole = journal.Journal.step
def step(self, *arguments):
    whole(self, *arguments)
    print("step", flush=True)
    time.sleep(600)
journal.Journal.step = step
sys.exit(cli.run(sys.argv[1:]))
"""


def test_killed_a_patch_is_gone_on_with_or_taken_back(shell: Any, road: Any) -> None:
    shell.ok("export", road.base, "--format", "gguf", "-o", "shipped")
    shell.ok("diff", road.merged, road.base, "-o", "task.eqpatch")
    shipped, device = shell.folder / "shipped/model.gguf", shell.folder / "model.gguf"
    for number, verb, expected in (
        (signal.SIGKILL, "apply", road.dist / "model.gguf"), (signal.SIGTERM, "revert", shipped)
    ):  # fmt: skip
        shutil.copy(shipped, device)
        line = [sys.executable, "-c", SLOW, "patch", "apply", str(device), str(shell.folder / "task.eqpatch")]
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            while process.stdout.readline() != "step\n":
                assert process.poll() is None
            process.send_signal(number)
        assert process.returncode != 0
        assert journal_of(device).exists()
        for command in (("quantize", device, "-o", "base"), ("diff", device, shipped)):
            shell.refused(3, *command, says="was being put in or taken out when that was cut short")
        assert shell.run("patch", "verify", device, "task.eqpatch").code == 4
        shell.ok("patch", verb, device, "task.eqpatch")
        assert device.read_bytes() == expected.read_bytes()
        assert not journal_of(device).exists()
