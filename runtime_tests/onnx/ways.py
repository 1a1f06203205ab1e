"""The ways in which ONNX Runtime computes an exported linear.

Of the everyday profile, "off" executes the graph as written: DequantizeLinear, then a float matmul. At
"fused level 1" and "fused level 4" ONNX Runtime replaces each pair by its low-bit kernel MatMulNBits; level 4,
its default, also rounds activations to 8 bits per block, where the processor has a kernel for that.
Of the exact profile: "exact off" executes the graph as written, "exact" as ONNX Runtime optimizes it by default.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from edgeqaf.errors import EdgeqafError, Refused
from edgeqaf.exportoptions import ACTIVATIONS, OnnxOptions
from edgeqaf.protocols import Artifact, Configuration, Form
from runtime_tests.onnx.replaying import ReplayingSession
from runtime_tests.onnx.session import LEVEL, Load, OnnxSession
from runtime_tests.onnx.worker import Setting


@dataclass(frozen=True)
class Way:
    """What the kernels do (`Configuration`), and what makes ONNX Runtime take them.

    fused:    the linear must be seen to become MatMulNBits.
    unproven: widths of codes, in bits, whose kernel has a written form that is not known (`protocols.Form`).
    """

    configuration: Configuration
    setting: Setting
    fused: bool = False
    unproven: tuple[int, ...] = ()

    def session(
        self, artifact: Artifact, load: Load, threads: int, unfused: type[EdgeqafError] = Refused
    ) -> OnnxSession:
        """An exported folder, computed in this way by what ``load`` loads; ``unfused`` is raised where it was not.

        Of the everyday profile linears can be watched; the exact profile's program has but one result as a whole.
        """
        setting: Setting = {**self.setting, "threads": threads}
        error = unfused if self.fused else None
        if self.configuration.program:
            return OnnxSession(artifact.path, load, setting, error, self.unproven)
        return ReplayingSession(artifact, load, setting, error, self.unproven, self.configuration.int8_activations)


def way(name: str, setting: Setting, *, int8: bool = False, split_zero: bool = False, **more: Any) -> Way:
    """A way under its name. int8, split_zero: as in `Configuration`; more: of `Way`."""
    return Way(Configuration(name, int8, Form.TWO_TERM, split_zero), setting, **more)


def all_ways(int8: bool = True, unproven: tuple[int, ...] = ()) -> tuple[Way, ...]:
    """Those of every program.

    int8: whether level 4 has a kernel that rounds activations; unproven: as in `Way`, of that kernel.
    """
    levels: dict[str, Setting] = {n: {"config": {LEVEL: n}} for n in ("1", "4")}
    return (
        way("off", {"level": "off", "arena": False}),  # with an arena every decoded weight stays in memory
        way("fused level 1", levels["1"], fused=True),
        way("fused level 4", levels["4"], int8=int8, split_zero=int8, fused=True, unproven=unproven),
        *exact_ways(),
    )


def exact_ways(levels: Mapping[str, str] = MappingProxyType({"exact off": "off", "exact": "all"})) -> Iterator[Way]:
    """Those of the exact profile, with activations of 16 and of 8 bits. levels: of optimization, by name."""
    for activations in ACTIVATIONS["exact"]:
        program = OnnxOptions("exact", activations=activations).program
        for name, level in levels.items():
            bits = activations == "int8"
            own = name.replace("exact", "exact int8") if bits else name
            form = Configuration(own, bits, Form.DECODED, exact_sums=True, program=program)
            yield Way(form, {"level": level})
