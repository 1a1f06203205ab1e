"""Models on every grid as ONNX folders, for the tests of ONNX Runtime, and what its kernels must answer."""

import platform
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.exportoptions import ExportOptions, OnnxOptions
from edgeqaf.grid import Zero
from edgeqaf.protocols import Artifact, RuntimeOptions, Session, Stored
from edgeqaf.qtensor import QTensor
from edgeqaf.report import compare_bits
from edgeqaf.source import FloatModel
from runtime_tests.onnx import worker

RUNTIME = plugins.find("runtimes", "onnxruntime")
EXPORTER = plugins.find("exporters", RUNTIME.reads)
FITTING = [name for name in plugins.names("grids") if plugins.find("grids", name).fits(64)]  # the tiny model's rows
GRIDS = [name for name in FITTING if EXPORTER.refuses(plugins.find("grids", name)) is None]
MODELS = ["q4_0", "q4_1", "q8_0"]  # fine enough for whole models: with 2 bits this one's logits are nearly flat
BASE = Path(__file__).resolve().parents[2] / "examples" / "storyteller-6m"
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "models"
OPTIONS = RuntimeOptions()
LINEAR = "model.layers.0.mlp.up_proj.weight"
PROMPTS = ("Once upon a time there was a little dog named Tim. He", "The old king", "Lily and Ben went to the park")
EVERYDAY = [c for c in RUNTIME.configurations if not c.program]


def quantized(folder: Path, grid_name: str) -> QModel:
    source, grid, quantize = FloatModel(folder), plugins.find("grids", grid_name), plugins.find("quantizers", "absmax")
    tensors = {n: quantize(source[n], grid) if source.is_linear(n) else source[n] for n in source}
    return QModel(source.config, tensors, folder)


def exported(model: QModel, path: Path) -> Artifact:
    EXPORTER.export(model, path)
    return Artifact(RUNTIME.reads, path, EXPORTER.read_back(path), model.folder)


def asked(model: QModel, form: str, activations: str = "float", level: int = 1) -> QModel:
    return replace(model, asked=ExportOptions(onnx=OnnxOptions("everyday", level, form, activations)))


def extreme(grid_name: str, shape: tuple[int, int]) -> QTensor:
    """Any codes, with parameters over all of float16: subnormals, zeros of both signs, both ends."""
    grid = plugins.find("grids", grid_name)
    rng = np.random.default_rng(0)
    blocks = (shape[0], shape[1] // grid.block)

    def halves() -> np.ndarray:
        bits = rng.integers(0, 0x7C00, blocks) | (rng.integers(0, 2, blocks) << 15)
        bits[0, :2] = 0, 0x8000
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)

    codes = rng.integers(grid.lo, grid.hi + 1, shape).astype(np.int8)
    points = rng.integers(grid.lo, grid.hi + 1, blocks).astype(np.float32)
    return QTensor(grid, codes, halves(), {Zero.NONE: None, Zero.CODE: points, Zero.OFFSET: halves()}[grid.zero])


def read_back(session: Session, stored: Stored, height: int) -> np.ndarray:
    """Every input in turn set to ``height``: [out, in]."""
    return session.linear(stored, np.float32(height) * np.eye(stored.tensor.shape[1], dtype=np.float32)).T


def expected(q: QTensor, height: int) -> np.ndarray:
    """height * weight, rounded once; with a float zero, in the two terms that the graph computes."""

    def wide(parameter: np.ndarray) -> np.ndarray:
        return parameter.repeat(q.grid.block, 1).astype(np.float64)

    if q.grid.zero is not Zero.OFFSET:
        zero = q.grid.centre if q.zero is None else wide(q.zero)
        return ((q.codes.astype(np.float64) - zero) * wide(q.scale) * height).astype(np.float32)
    middle = {15: 8, 7: 4, 3: 2}[q.grid.hi]
    product = ((q.codes.astype(np.float64) - middle) * wide(q.scale) * height).astype(np.float32)
    return product + (wide(q.zero + np.float32(middle) * q.scale) * height).astype(np.float32)


def assert_every_weight_comes_out(session: Session, stored: Stored, int8_activations: bool) -> None:
    q = stored.tensor
    assert isinstance(q, QTensor)
    height = 127 if int8_activations else 1
    found = read_back(session, stored, height)
    if not (int8_activations and q.grid.bits == 8):
        assert compare_bits(expected(q, height), found).sum() == 0
        return
    # This kernel makes the codes unsigned: it adds 128 to them and subtracts 128 * scale * sum(x). The first
    # term has 26 bits and is rounded, so the float is not exact, but it still tells every code from the next.
    scale = q.scale.repeat(q.grid.block, 1).astype(np.float64)
    codes = np.rint(found / np.where(scale == 0, 1, scale * height))
    assert np.array_equal(codes, np.where(scale == 0, 0, q.codes))
    if platform.machine() == "x86_64":  # measured there: no other rounding, with AVX2 and AVX-512 alike
        unsigned = ((q.codes + 128.0) * scale * height).astype(np.float32)
        assert compare_bits(unsigned - (128 * scale * height).astype(np.float32), found).sum() == 0


def fused(artifact: Artifact, level: str, attribute: str, folder: Path) -> list[int]:
    """An attribute of each fused kernel in the whole model as ONNX Runtime optimizes it."""
    import onnx

    config = {"session.qdq_matmulnbits_accuracy_level": level}
    worker.load(str(artifact.path / "model.onnx"), {"config": config, "optimized": str(folder / "optimized.onnx")})
    nodes = onnx.load(folder / "optimized.onnx", load_external_data=False).graph.node
    return [next(a.i for a in n.attribute if a.name == attribute) for n in nodes if n.op_type == "MatMulNBits"]
