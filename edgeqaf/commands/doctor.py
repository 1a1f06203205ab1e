"""doctor: what this machine can do."""

import importlib.metadata
from pathlib import Path
from typing import Any

from edgeqaf.options import Json, LlamaLib, PlacesFolder

PACKAGES = (
    "numpy", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "peft",
    "onnx", "onnx-ir", "onnxscript", "onnxruntime", "gguf", "xllamacpp",
)  # fmt: skip


def command(llama_lib: LlamaLib = None, places: PlacesFolder = None, json: Json = False) -> None:
    """List packages, runtimes, memory and disk, and say what is missing."""
    import os
    import platform

    import psutil

    from edgeqaf import __version__, plugins
    from edgeqaf.console import emit, say, table
    from edgeqaf.protocols import Runtime, RuntimeOptions
    from runtime_tests import pitfalls

    packages = {name: _version(name) for name in PACKAGES}
    table("Packages", ("package", "version"), [(n, v or "absent") for n, v in packages.items()])
    runtimes = {}
    for name in plugins.names("runtimes"):
        runtime: Runtime = plugins.find("runtimes", name)
        available = runtime.availability(RuntimeOptions(llama_lib, places=places))
        runtimes[name] = {"version": available.version, "reason": available.reason, "reads": runtime.reads}
    rows = [(n, r["version"] or f"absent: {r['reason']}", r["reads"] or "any artifact") for n, r in runtimes.items()]
    table("Runtimes", ("runtime", "version", "reads"), rows)
    for name, about in runtimes.items():
        for pitfall in pitfalls.of(pitfalls.Case(name, about["version"] or "", "", frozenset())):
            say(f"known of {name}: {pitfall}")
    for kind in ("exporters", "commands"):
        plugins.names(kind)  # raises ShadowedPackage where another distribution owns the name
    machine: dict[str, Any] = {
        "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(), "memory_bytes": psutil.virtual_memory().total,
        "disk_free_bytes": psutil.disk_usage(str(Path.cwd())).free,
    }  # fmt: skip
    say(f"edgeqaf {__version__}, Python {machine['python']}, {machine['system']}, {machine['cores']} cores")
    say(f"{machine['memory_bytes'] / 1e9:.1f} GB memory, {machine['disk_free_bytes'] / 1e9:.1f} GB of disk free here")
    if json:
        emit({"edgeqaf": __version__, "packages": packages, "runtimes": runtimes, "machine": machine})


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
