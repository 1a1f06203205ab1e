"""Places where an ONNX Runtime can be reached: other versions, other processors, other languages.

A place is a command that starts a worker (`worker.py`, `worker.mjs`), which holds models and runs them.
Each is found in one folder, laid out by `make places`:

    onnxruntime-1.24.4/        a wheel, as `pip install --no-deps --target` unpacks it; used by this Python
    onnxruntime-openvino-.../  likewise
    node_modules/              onnxruntime-web, -node, -common
    qemu/                      qemu-x86_64-static, qemu-aarch64-static
    aarch64/                   an arm64 Debian with Python, and wheels for it
    swiftshader/               a Vulkan in software

Absent means RuntimeAbsent, with what is missing and how to get it.
"""

import itertools
import json
import platform
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeqaf.errors import Refused, RuntimeAbsent
from runtime_tests import place as base
from runtime_tests.onnx import cut, worker
from runtime_tests.onnx.worker import Arrays, Setting

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Place(base.Place):
    """Where an ONNX Runtime is. providers: the execution providers that its models run on."""

    providers: tuple[Any, ...] = ("CPUExecutionProvider",)

    @contextmanager
    def open(self) -> Iterator["Engine"]:
        """Start the worker; it ends with the block."""
        with self.started() as running:
            yield Engine(self, running)


class Engine:
    """A running worker, and the models that it holds."""

    def __init__(self, place: Place, running: base.Worker) -> None:
        self._place, self._worker = place, running
        self._numbers = itertools.count()
        self._forgotten: list[int] = []  # models that nobody here holds any more

    def load(self, model: str | bytes, setting: Setting) -> "Remote":
        """Load a model from its path or bytes; raises Refused with what the worker says."""
        number = next(self._numbers)
        message = {"op": "load", "session": number, "setting": {"providers": list(self._place.providers), **setting}}
        given: Arrays = {}
        if isinstance(model, bytes):
            given["model"] = np.frombuffer(model, np.uint8)
        else:
            message["path"] = model
        return Remote(self, number, self.ask(message, given)[0])

    def version(self) -> str:
        """Of the worker's ONNX Runtime."""
        return str(self.ask({"op": "greet"})[0]["version"])

    def holds(self) -> int:
        """How many models the worker holds."""
        return int(self.ask({"op": "greet"})[0]["sessions"])

    def forget(self, number: int) -> None:
        """Let the worker drop a model, before it does anything else. (Garbage may be collected amid a message.)"""
        self._forgotten.append(number)

    def ask(self, message: Mapping[str, Any], arrays: Arrays | None = None) -> tuple[dict[str, Any], Arrays]:
        """Send a message, wait for its answer; raises Refused if the worker fails or dies."""
        while self._forgotten:
            self._exchange({"op": "drop", "session": self._forgotten.pop()}, {})
        return self._exchange(message, arrays)

    def _exchange(self, message: Mapping[str, Any], arrays: Arrays | None) -> tuple[dict[str, Any], Arrays]:
        try:
            worker.write(self._worker.stdin, message, arrays)
            answer = worker.read(self._worker.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise self._worker.died()
        if "error" in answer[0]:
            raise Refused(f"{self._place.name}: {answer[0]['error'].splitlines()[0]}")
        return answer


class Remote:
    """A model that a worker holds, as long as this is held; the same names as `worker.Loaded`."""

    def __init__(self, engine: Engine, number: int, about: Mapping[str, Any]) -> None:
        self._engine, self._number = engine, number
        weakref.finalize(self, engine.forget, number).atexit = False
        self.inputs: dict[str, list[Any]] = about["inputs"]
        self.outputs: list[str] = about["outputs"]
        self.rewritten_by: list[str] | None = about["rewritten_by"]
        self.threads: int | None = about["threads"]

    def run(self, feeds: Mapping[str, Any]) -> Arrays:
        """Every output by name."""
        return self._engine.ask({"op": "run", "session": self._number}, dict(feeds))[1]


def run(place: Place, model: Path, feeds: Mapping[str, Any], setting: Setting | None = None) -> Arrays:
    """Run a model file once in a place: every output by name. Raises Refused with what the place says."""
    import onnx

    data = cut.data_files(onnx.load(str(model), load_external_data=False))
    beside: Setting = {"folder": str(model.parent.resolve()), "data": data}
    with place.open() as engine:
        return engine.load(str(model.resolve()), {**beside, **(setting or {})}).run(feeds)


def names() -> list[str]:
    """Every place that is known."""
    return list(_KNOWN)


def find(name: str, folder: Path | None) -> Place:
    """The place ``name``; ``folder`` holds what it needs. Raises RuntimeAbsent."""
    return _KNOWN[name](name, folder)


def _here(name: str, folder: Path | None) -> Place:
    """This Python, in a process of its own."""
    return Place(name, (sys.executable, str(HERE / "worker.py")))


def _wheel(package: str, **more: Any) -> Callable[[str, Path | None], Place]:
    """Another onnxruntime package in this Python."""

    def find(name: str, folder: Path | None) -> Place:
        return Place(name, _here(name, folder).command, {"PYTHONPATH": str(base.part(folder, package))}, **more)

    return find


def _openvino(**options: Any) -> Callable[[str, Path | None], Place]:
    """OpenVINO on the CPU, with options of its own."""
    provider = ["OpenVINOExecutionProvider", {"device_type": "CPU", "load_config": json.dumps({"CPU": options})}]
    return _wheel("onnxruntime-openvino-1.24.1", providers=(provider,))


def _webgpu(name: str, folder: Path | None) -> Place:
    package, vulkan = base.part(folder, "onnxruntime-webgpu-1.27.0"), base.part(folder, "swiftshader")
    environment = {
        "PYTHONPATH": str(package),
        "VK_ICD_FILENAMES": str(vulkan / "vk_swiftshader_icd.json"),
        "LD_LIBRARY_PATH": str(vulkan),
    }
    providers = ("WebGpuExecutionProvider", "CPUExecutionProvider")
    return Place(name, _here(name, folder).command, environment, providers=providers)


def _x86(model: str) -> Callable[[str, Path | None], Place]:
    """This Python on an emulated processor of another level."""

    def find(name: str, folder: Path | None) -> Place:
        if platform.machine() != "x86_64":
            raise RuntimeAbsent(f"{name}: this Python is not for x86-64 but for {platform.machine()}", "use another")
        emulator = base.emulator("qemu-x86_64-static", folder)
        plain = {"OPENBLAS_CORETYPE": "Nehalem"}  # numpy's kernels, where the user's environment asks for newer ones
        return Place(name, (emulator, "-cpu", model, *_here(name, folder).command), plain, emulated=True)

    return find


def _arm(model: str) -> Callable[[str, Path | None], Place]:
    """An arm64 Python on an emulated processor."""

    def find(name: str, folder: Path | None) -> Place:
        python, wheels = base.arm64_python(model, folder)
        return Place(name, (*python, str(HERE / "worker.py")), {"PYTHONPATH": wheels}, emulated=True)

    return find


def _node(package: str) -> Callable[[str, Path | None], Place]:
    def find(name: str, folder: Path | None) -> Place:
        modules, node = base.part(folder, "node_modules"), shutil.which("node")
        if node is None:
            raise RuntimeAbsent(f"{name}: no node on the PATH", "install Node.js 20 or newer")
        return Place(name, (node, str(HERE / "worker.mjs"), str(modules), package))

    return find


_KNOWN: dict[str, Callable[[str, Path | None], Place]] = {
    "here": _here,
    "1.24": _wheel("onnxruntime-1.24.4"),
    "1.32": _wheel("onnxruntime-1.32.0"),
    "avx2": _x86("Haswell"),
    "avx": _x86("IvyBridge"),
    "sse": _x86("Nehalem"),
    "cortex-a72": _arm("cortex-a72"),
    "cortex-a76": _arm("cortex-a76"),
    "armv9": _arm("max"),
    "web": _node("onnxruntime-web"),
    "node": _node("onnxruntime-node"),
    "webgpu": _webgpu,
    "openvino-float32": _openvino(DYNAMIC_QUANTIZATION_GROUP_SIZE="0", INFERENCE_PRECISION_HINT="f32"),
    "openvino-dynamic": _openvino(),
}
