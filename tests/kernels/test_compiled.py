"""Every kernel compiles for the GPUs it is meant for, and its code has none of what would change a result.

Triton's compiler needs no GPU. A kernel is compiled as its function launches it: the launch is recorded, not made.
"""

import os
import re
from importlib import import_module
from typing import Any

import pytest
import torch

from edgeqaf import plugins
from edgeqaf.adapters.codes import Codes
from edgeqaf.packed import Packed, lanes

triton = pytest.importorskip("triton", reason="Triton is not installed; torch's CUDA builds bring it")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets in this process", allow_module_level=True)

POINTERS = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int8: "*i8", torch.uint8: "*u8", torch.int32: "*i32",
}  # fmt: skip
# Kernel, grid, type of activations or gradients, compute capability (80: A100, 90: H100 and H200).
LAUNCHES = [
    ("weights", "q4_1", torch.bfloat16, 80),
    ("weights", "q8_0", torch.float16, 90),
    ("squares", "q4_0", torch.bfloat16, 80),
    ("move", "q4_0", torch.bfloat16, 80),
    ("move", "q2_0", torch.float32, 90),
    ("fold_product", "q4_0", torch.float32, 80),
    ("fold_product", "q8_0", torch.float32, 90),
]


class Recorded:
    """A kernel whose launch is kept for `compiled`."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, *args: Any, enable_fp_fusion: bool = True, **constants: Any) -> None:
        self.args, self.constants, self.fusion = args, constants, enable_fp_fusion

    def compiled(self, capability: int) -> str:
        """PTX; that the assembler took it too is seen by its having made a binary."""
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        names = self.kernel.arg_names[: len(self.args)]
        types = [POINTERS[a.dtype] if isinstance(a, torch.Tensor) else {int: "i32", float: "fp32"}[type(a)]
                 for a in self.args]  # fmt: skip
        signature = dict(zip(names, types, strict=True)) | dict.fromkeys(self.constants, "constexpr")
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=self.constants)
        found = triton.compile(
            source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": self.fusion}
        )
        assert found.asm["cubin"]
        return str(found.asm["ptx"])


def launches(name: str, grid_name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """What kernel ``name`` would be launched with for a matrix [64, 256] on a grid."""
    module = import_module(f"edgeqaf.kernels.cuda.{name}")
    recorded = Recorded(getattr(module, f"_{name}"))
    monkeypatch.setattr(module, f"_{name}", recorded)
    grid = plugins.find("grids", grid_name)
    scale = torch.ones(64, 8)
    base = Packed(grid, torch.zeros(64, 256 // lanes(grid), dtype=torch.uint8), scale,
                  None if grid.zero.value == "none" else scale)  # fmt: skip
    grad, factor = torch.zeros(64, 256, dtype=dtype), torch.ones(64, 8, dtype=torch.float64)
    arguments: dict[str, tuple[Any, ...]] = {
        "weights": (base, slice(0, 64), dtype),
        "squares": (grad, scale),
        "move": (grad, scale, torch.ones(64), torch.ones(256), 5.0, Codes(base, 1, 0)),
        "fold_product": (base, torch.ones(64, 4), torch.ones(4, 256), factor, torch.zeros(64, 256, dtype=torch.int8)),
    }
    getattr(module, name)(*arguments[name])
    return recorded


@pytest.fixture(autouse=True)
def cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))


@pytest.mark.parametrize(("name", "grid", "dtype", "capability"), LAUNCHES, ids=str)
def test_code_has_no_contraction_no_flushing_and_no_atomics(
    name: str, grid: str, dtype: torch.dtype, capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = launches(name, grid, dtype, monkeypatch).compiled(capability)
    for unwanted in (r"\bfma\.", r"\.ftz\b", r"\.approx\b", r"\batom\.", r"\bred\."):
        assert not re.search(unwanted, code), unwanted


def test_sixteen_bit_weights_are_rounded_to_nearest_even(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, grid, dtype, capability in LAUNCHES[:2]:
        with monkeypatch.context() as patch:
            code = launches("weights", grid, dtype, patch).compiled(capability)
        kind = {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
        narrowing = set(re.findall(rf"\bcvt\.\w+\.{kind}(?:x2)?\.f32", code))
        assert {word.split(".")[1] for word in narrowing} == {"rn"}


def test_products_of_factors_are_taken_in_integers_by_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, grid, dtype, capability in LAUNCHES[-2:]:
        with monkeypatch.context() as patch:
            code = launches("fold_product", grid, dtype, patch).compiled(capability)
        assert re.search(r"mma\S*\.s32\.s8\.s8", code)


def test_this_test_would_see_a_contraction(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = launches("fold_product", "q4_0", torch.float32, monkeypatch)
    recorded.fusion = True
    assert re.search(r"\bfma\.rn\.f64", recorded.compiled(80))
