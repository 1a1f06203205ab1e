"""Combinations of an ONNX Runtime, a graph and an option that compute something else than one would think.

Each entry names the public thread that tells of it, or says that none is known to us. ``versions`` is the range
in which it was seen here, first and last of those tried; where it was only read of, ``seen`` is False. The tests
reproduce every entry that was seen, and fail when a version no longer shows it: then the range must be corrected.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from edgeqaf import plugins
from edgeqaf.grid import Grid, Zero
from edgeqaf.protocols import Artifact, Runtime, RuntimeOptions, fitting


@dataclass(frozen=True)
class Case:
    """What is run where.

    runtime, version: a runtime's registry key and what its library says, e.g. "1.31.1".
    configuration:    its name; "" for any.
    grids:            of the artifact's quantized tensors.
    """

    runtime: str
    version: str
    configuration: str
    grids: frozenset[Grid]

    @property
    def exact(self) -> bool:
        """Whether it runs a program of the exact profile."""
        return "exact" in self.configuration

    @property
    def rounds(self) -> bool:
        """Whether MatMulNBits is asked for accuracy level 4."""
        return self.configuration.endswith("level 4") or not self.configuration


@dataclass(frozen=True)
class Pitfall:
    """One combination. concerns: of the runs of edgeqaf's own artifacts, which; None: they never meet it."""

    name: str
    what: str
    source: str
    versions: tuple[str, str] = ("", "")
    concerns: Callable[[Case], bool] | None = None
    seen: bool = True

    def applies(self, case: Case) -> bool:
        """Whether a run of an exported artifact meets it."""
        first, last = self.versions
        within = not first or (bool(case.version) and _ordered(first) <= _ordered(case.version) <= _ordered(last))
        return within and self.concerns is not None and self.concerns(case)

    def __str__(self) -> str:
        return f"{self.what} ({self.source})"


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _without_int8(case: Case) -> bool:
    lacks = ("avx fused", "sse fused", "cortex-a72 fused")
    return case.rounds and (case.runtime == "onnxruntime_web" or case.configuration.startswith(lacks))


def _on_cpu(case: Case) -> bool:
    """A run by the low-bit kernels of ONNX Runtime's own, which the exact profile does not use."""
    return (
        not case.exact
        and case.runtime.startswith("onnxruntime")
        and case.runtime not in ("onnxruntime_openvino", "onnxruntime_webgpu")
    )


PITFALLS = (
    Pitfall(
        "default-level-4",
        "unless told otherwise, fused linears round activations to 8 bits per block: errors of 4e-3 instead of 1e-6, "
        "which have flipped the most likely token; session.qdq_matmulnbits_accuracy_level=1 computes in float32",
        "microsoft/onnxruntime#29849",
        ("1.23.2", "1.32.0"),
        lambda case: _on_cpu(case) and case.rounds and not _without_int8(case),
    ),
    Pitfall(
        "level-4-in-float32",
        "accuracy level 4 has no kernel on WebAssembly, on x86 below AVX2, and on ARM without dot products "
        "(Raspberry Pi 4): it computes in float32, says nothing, and answers otherwise than where it has one",
        "no thread known; seen here",
        ("1.30.0", "1.32.0"),
        _without_int8,
    ),
    Pitfall(
        "8-bit-unfused",
        "codes of 8 bits are not fused: each call decodes the whole matrix, slow but exact",
        "no thread known; seen here in 1.24.4 and not in 1.25.1",
        ("1.18.0", "1.24.4"),
        lambda case: _on_cpu(case) and any(grid.bits == 8 for grid in case.grids),
    ),
    Pitfall(
        "8-bit-activations",
        "DequantizeLinear of activations and of codes of 8 bits in blocks, then MatMul, fails when it runs, from "
        "ORT_ENABLE_EXTENDED on: they become one operator, which knows no blocks",
        "no thread known; seen here",
        ("1.24.4", "1.32.0"),
    ),
    Pitfall(
        "8-bit-on-dot-products",
        "codes of 8 bits at accuracy level 4 on ARM with dot products but no int8 matrix products (Cortex-A76, "
        "Raspberry Pi 5) come out up to 4e-6 off the exact answer, even where nothing need be rounded",
        "no thread known; seen here",
        ("1.31.1", "1.31.1"),
        lambda case: case.configuration == "cortex-a76 fused level 4" and any(grid.bits == 8 for grid in case.grids),
    ),
    Pitfall(
        "block-512-zeros",
        "blocks of 512 are fused by default and give all zeros, without an error",
        "microsoft/onnxruntime#28551",
        ("1.23.2", "1.26.0"),
    ),
    Pitfall(
        "block-512-refused",
        "blocks of 512 do not load with session.enable_dq_matmulnbits_fusion=1 (by default, in 1.28 and 1.29)",
        "microsoft/onnxruntime#28551",
        ("1.28.0", "1.31.1"),
    ),
    Pitfall(
        "scales-not-constant",
        "MatMulNBits at accuracy level 4 gives what memory holds, often all zeros, when its scales are not a constant, "
        "on x86 from AVX2 on",
        "no thread known; seen here",
        ("1.23.2", "1.32.0"),
    ),
    Pitfall(
        "float16-extended",
        "a float16 model gives what memory holds, often zeros, at ORT_ENABLE_EXTENDED: a Cast comes between its scales "
        "and MatMulNBits at accuracy level 4; ORT_ENABLE_ALL computes it. Seen in 1.28.0, from 1.30.0, not in 1.29.0",
        "no thread known; seen here",
        ("1.30.0", "1.32.0"),
    ),
    Pitfall(
        "opset-27",
        "models of opset 27 and of IR version 14 are refused",
        "no thread known; seen here",
        ("1.24.4", "1.31.1"),
    ),
    Pitfall(
        "openvino-rounds",
        "with VNNI, OpenVINO rounds activations to 8 bits unless DYNAMIC_QUANTIZATION_GROUP_SIZE is 0: errors of 7e-3",
        "no thread known; seen here",
        ("1.24.1", "1.24.1"),
        lambda case: (
            case.runtime == "onnxruntime_openvino" and "float32" not in case.configuration and not case.exact
        ),
    ),
    Pitfall(
        "openvino-attention",
        "OpenVINO loads no graph with ONNX's Attention (opset 23), so no everyday folder as a whole",
        "no thread known; seen here", ("1.24.1", "1.24.1"),
        lambda case: case.runtime == "onnxruntime_openvino" and not case.exact,
    ),
    Pitfall(
        "openvino-contracts",
        "OpenVINO rounds a * b + c once and takes (a + b) - b for a, whatever b: the exact profile's logits differ",
        "no thread known; seen here",
        ("1.24.1", "1.24.1"),
        lambda case: case.runtime == "onnxruntime_openvino" and case.exact,
    ),
    Pitfall(
        "openvino-divides",
        "OpenVINO multiplies by a reciprocal instead of dividing: float32 quotients differ in their last bit",
        "no thread known; seen here",
        ("1.24.1", "1.24.1"),
        lambda case: case.runtime == "onnxruntime_openvino",
    ),
    Pitfall(
        "avx2-one-row",
        "with AVX2, one row and zero points that are not 8, errors of 46 per cent were reported; not seen in 1.24.4 "
        "and 1.31.1",
        "microsoft/onnxruntime#29853",
        ("1.24.0", "1.30.0"),
        lambda case: _on_cpu(case) and case.rounds and any(grid.zero is Zero.CODE for grid in case.grids),
        seen=False,
    ),
    Pitfall(
        "axis-0-fusion",
        "the fusion of block-wise DequantizeLinear on axis 0 was reported to compute wrongly; not seen in 1.29.0",
        "onnxsim/onnxsim#749",
        ("1.29.0", "1.29.9"),
        lambda case: _on_cpu(case) and "off" not in case.configuration,
        seen=False,
    ),
    Pitfall(
        "int8-moved",
        "DequantizeLinear of int8 without a zero point, then Reshape or Transpose: negative codes come out as 0, for a "
        "pair of uint8 is put behind it (WebGPU 1.27.0 refuses Transpose); a zero point of 0 prevents it",
        "microsoft/onnxruntime#28491, #27845",
        ("1.23.2", "1.26.0"),
    ),
    Pitfall(
        "gather-zero-point",
        "GatherBlockQuantized without a zero point takes 8 on the CPU and 0 on CUDA",
        "microsoft/onnxruntime#31692",
        seen=False,
    ),
    Pitfall(
        "gather-first-run",
        "GatherBlockQuantized without a zero point takes on WebGPU that of the first such graph that the process ran: "
        "0 of codes in uint4, 8 of codes in uint8; a zero point that is written prevents it",
        "no thread known; seen here",
        ("1.27.0", "1.27.0"),
    ),
    Pitfall(
        "gather-ragged",
        "GatherBlockQuantized on CUDA was reported to take a neighbour's scales where rows do not divide into blocks; "
        "not seen on the CPU, in WebAssembly and on WebGPU",
        "microsoft/onnxruntime#32663",
        seen=False,
    ),
    Pitfall(
        "nbits-parity",
        "MatMulNBits was reported to be 0.13 off PyTorch, its cause not found; seen in 1.23.2 is only what level 4 "
        "rounds: at level 1 products are within 3e-6",
        "microsoft/onnxruntime#26507",
        ("1.23.2", "1.23.2"),
        lambda case: _on_cpu(case) and case.rounds,
        seen=False,
    ),
    Pitfall(
        "qdq-one-step",
        "fused pairs of QuantizeLinear and DequantizeLinear differ by one step; ORT_ENABLE_BASIC computes as written",
        "microsoft/onnxruntime#32132",
        seen=False,
    ),
)  # fmt: skip


def of(case: Case) -> Iterator[Pitfall]:
    """The entries that a run meets."""
    return (pitfall for pitfall in PITFALLS if pitfall.applies(case))


def met(artifacts: Iterable[Artifact], runtimes: Iterable[str], options: RuntimeOptions) -> dict[str, list[str]]:
    """What the runs of ``verify`` meet: each entry's text, and the runs, e.g. "onnxruntime fused level 4"."""
    found: dict[str, list[str]] = {}
    for artifact in artifacts:
        grids = frozenset(q.grid for _, _, q in artifact.quantized())
        for name in runtimes:
            runtime: Runtime = plugins.find("runtimes", name)
            version = runtime.availability(options).version
            if version is None or runtime.reads is None:
                continue
            for configuration in fitting(runtime, artifact):
                for pitfall in of(Case(name, version, configuration.name, grids)):
                    found.setdefault(str(pitfall), []).append(f"{name} {configuration.name}")
    return found
