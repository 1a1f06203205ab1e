"""The three ways in which ONNX Runtime computes an exported linear.

"off" executes the graph as written: DequantizeLinear, then a float matmul. At "fused level 1" and
"fused level 4" ONNX Runtime replaces each pair by its low-bit kernel MatMulNBits; level 4, its
default, also rounds activations to 8 bits per block, where the processor has a kernel for that.
"""

from pathlib import Path

from edgeqaf.protocols import Configuration, Form
from runtime_tests.onnx.session import Load, OnnxSession
from runtime_tests.onnx.worker import Setting

LEVELS = {"off": None, "fused level 1": "1", "fused level 4": "4"}  # accuracy level of MatMulNBits


def configurations(prefix: str = "", int8: bool = True) -> tuple[Configuration, ...]:
    """The three, named after ``prefix``. int8: whether level 4 has a kernel that rounds activations."""
    return tuple(
        Configuration(
            f"{prefix} {name}".strip(),
            int8_activations=int8 and level == "4",
            offset_form=Form.TWO_TERM,
            split_zero=int8 and level == "4",
        )
        for name, level in LEVELS.items()
    )


def session(folder: Path, load: Load, level: str, threads: int) -> OnnxSession:
    """An exported folder, computed in one of the `LEVELS`."""
    accuracy = LEVELS[level]
    if accuracy is None:  # without an arena, or every decoded weight stays in memory
        off: Setting = {"level": "off", "arena": False, "threads": threads}
        return OnnxSession(folder, load, off, fused=False)
    config = {"session.qdq_matmulnbits_accuracy_level": accuracy}
    return OnnxSession(folder, load, {"config": config, "threads": threads}, fused=True)
