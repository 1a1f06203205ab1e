"""Ours against theirs: the library that defines compressed-tensors, which also reads AutoAWQ's layout.

GPTQ has no reader in PyPI without a CUDA toolchain; its layout is held by `quantized_folder` alone.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from quantized_folder import awq, awq_settings, linear, packed, packed_settings
from safetensors.torch import save_file

from edgeqaf import plugins
from edgeqaf.importing import Arrays, Layer
from edgeqaf.prequantized import put_on_grid
from edgeqaf.qtensor import decode
from edgeqaf.shards import Shards

SHAPES = [(64, 128), (12, 256), (8, 32)]  # 12 rows: the words of zeros are padded
each_bits = pytest.mark.parametrize("bits", [4, 8])


def scheme(group: int, symmetric: bool, bits: int) -> QuantizationScheme:
    weights = packed_settings(group, symmetric, bits)["config_groups"]["group_0"]["weights"]
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))


def ours(arrays: dict[str, torch.Tensor], settings: dict[str, object], path: Path, name: str) -> Layer:
    save_file({f"x.{part}": array.contiguous() for part, array in arrays.items()}, path / "model.safetensors")
    importer = plugins.find("importers", name)(settings)
    return importer.layer(Arrays(Shards(path), "x"))


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def weights(layer: Layer) -> np.ndarray:
    return decode(put_on_grid("x", layer))


def equal(a: np.ndarray, b: torch.Tensor) -> bool:
    assert a.dtype == np.float32
    assert b.dtype == torch.float32
    return np.array_equal(a.view(np.uint32), b.numpy().view(np.uint32))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize(("symmetric", "bits"), [(True, 4), (False, 4), (True, 8)])
def test_what_they_compress_we_import_as_they_decompress(shape, group, symmetric, bits, tmp_path):
    made = linear(np.random.default_rng(9), shape, min(group, shape[1]), symmetric=symmetric, bits=bits)
    middle = 1 << (bits - 1)
    state = {
        "weight": torch.from_numpy(made.weights),
        "weight_scale": torch.from_numpy(made.scale.astype(np.float32)),
        "weight_zero_point": torch.from_numpy((made.zero - middle).astype(np.int8)),
    }
    theirs = scheme(made.group, symmetric, bits)
    compressed = PackedQuantizationCompressor.compress(state, theirs)
    layer = ours(compressed, packed_settings(made.group, symmetric, bits), tmp_path, "compressed_tensors")
    assert equal(weights(layer), PackedQuantizationCompressor.decompress(compressed, theirs)["weight"])
    assert np.array_equal(layer.codes(), made.codes)


@each_bits
def test_our_writer_of_their_format_writes_their_bytes(bits):
    made = linear(np.random.default_rng(4), (12, 96), 32, bits=bits)
    state = {
        "weight": torch.from_numpy(made.weights),
        "weight_scale": torch.from_numpy(made.scale.astype(np.float32)),
        "weight_zero_point": torch.from_numpy((made.zero - (1 << (bits - 1))).astype(np.int8)),
    }
    theirs = PackedQuantizationCompressor.compress(state, scheme(32, False, bits))
    mine = packed(made)
    assert mine.keys() == theirs.keys()
    for part in ("weight_packed", "weight_zero_point", "weight_shape"):
        assert np.array_equal(mine[part], theirs[part].numpy()), part


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_awq_is_what_their_converter_makes_of_it(group, symmetric, tmp_path):
    made = linear(np.random.default_rng(3), (64, 256), group, symmetric=symmetric)
    stored = tensors(awq(made))
    converter = AutoAWQConverter.from_autoawq_config(awq_settings(group, symmetric))
    converted = converter.process({f"layer.{part}": array.clone() for part, array in stored.items()})
    state = {name.removeprefix("layer."): array for name, array in converted.items()}
    state["weight_scale"] = state["weight_scale"].float()
    theirs = PackedQuantizationCompressor.decompress(state, scheme(group, symmetric, 4))["weight"]
    layer = ours(stored, awq_settings(group, symmetric), tmp_path, "awq")
    assert equal(weights(layer), theirs)
