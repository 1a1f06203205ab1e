"""The instruction set of this machine, as far as kernels are chosen by it."""

import platform
from pathlib import Path

# What the math libraries of the runtimes ask a processor for, as Linux spells it.
EXTENSIONS = frozenset(
    (
        "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl",
        "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
        "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
    )
)  # fmt: skip


def machine() -> str:
    """System, architecture and vector extensions, e.g. "Linux x86_64: avx avx2 fma"; the processor's name elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    listed = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    found = sorted(EXTENSIONS & set(listed.split())) or [platform.processor()]
    return f"{platform.system()} {platform.machine()}: {' '.join(found)}"
