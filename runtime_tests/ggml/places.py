"""Places where a llama.cpp can be reached: CPU variants of its own builds, ARM processors, a GPU's code in software.

Of the folder that `make places` fetches:

    llama.cpp/linux-x64/, linux-arm64/, linux-x64-vulkan/    the builds of npm's @node-llama-cpp
    aarch64/, qemu/                                          an arm64 Python, and what emulates its processor
    lavapipe/                                                a Vulkan in software, with what it needs
"""

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Artifact
from runtime_tests import place as base
from runtime_tests.ggml import remote
from runtime_tests.ggml.engine import Setting
from runtime_tests.ggml.library import Build

WORKER = ("-m", "runtime_tests.ggml.worker")
BUILDS = "llama.cpp"


@dataclass(frozen=True)
class Place(base.Place):
    """Where a llama.cpp is. build: what of it computes."""

    build: Build = field(default_factory=Build)

    @contextmanager
    def open(self, artifact: Artifact, setting: Setting) -> Iterator[remote.Remote]:
        """A worker that has opened the file. Raises RuntimeAbsent for a processor that cannot run the build."""
        with self.started() as worker:
            yield remote.Remote(worker, self.build, artifact.path, setting)

    def greet(self) -> tuple[str, str]:
        """Its release, and its release with the processor that computes."""
        with self.started() as worker:
            return remote.greet(worker, self.build)


Find = Callable[[Path | None], Place]
"""Finds a place in the folder of places; raises RuntimeAbsent."""


def x86(variant: str) -> Find:
    """A variant of the CPU's code, on this processor."""

    def find(folder: Path | None) -> Place:
        build = Build(base.part(folder, f"{BUILDS}/linux-x64"), variant)
        return Place(variant, _here("x86_64", variant), _ours(), build=build)

    return find


def arm(variant: str, processor: str) -> Find:
    """A variant of the CPU's code, on an emulated ``processor`` (qemu's name for it)."""

    def find(folder: Path | None) -> Place:
        build = Build(base.part(folder, f"{BUILDS}/linux-arm64"), variant)
        python, packages = base.arm64_python(processor, folder)
        return Place(f"{processor} {variant}", (*python, *WORKER), _ours(packages), emulated=True, build=build)

    return find


def vulkan(**settings: str) -> Find:
    """The code for Vulkan, on lavapipe; settings: ggml's own (``GGML_VK_...``), without the prefix."""

    def find(folder: Path | None) -> Place:
        build = Build(base.part(folder, f"{BUILDS}/linux-x64-vulkan"), gpu="vulkan")
        driver = base.part(folder, "lavapipe")
        environment = {
            "VK_ICD_FILENAMES": str(driver / "lvp_icd.json"),
            "LD_LIBRARY_PATH": str(driver),
            "MESA_SHADER_CACHE_DIR": str(driver / "compiled"),  # minutes, once
            "GGML_VK_VISIBLE_DEVICES": "0",  # ggml takes a device in software only if it is named
            "GGML_VK_DISABLE_INTEGER_DOT_PRODUCT": "1",  # with it, activations are rounded to 8 bits
            **{f"GGML_VK_{name}": value for name, value in settings.items()},
        }
        return Place("vulkan", _here("x86_64", "vulkan"), {**_ours(), **environment}, build=build)

    return find


def _here(machine: str, name: str) -> tuple[str, ...]:
    """This Python, in a process of its own."""
    if platform.machine() != machine:
        raise RuntimeAbsent(f"{name}: this Python is not for {machine} but for {platform.machine()}", "use another")
    return sys.executable, *WORKER


def _ours(packages: str = "") -> dict[str, str]:
    """An environment in which a Python finds our packages, and those in a folder before them."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, (packages, str(base.ROOT))))}
