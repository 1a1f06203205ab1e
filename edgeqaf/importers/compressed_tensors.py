"""compressed-tensors checkpoints of the format pack-quantized, as LLM Compressor writes them for vLLM.

    weight_packed      int32 [out, in * bits / 32]     codes, earlier inputs in lower bits; a row's last word is padded
    weight_scale       bfloat16, float16 or float32 [out, groups]
    weight_zero_point  int32 [out * bits / 32, groups] zeros, earlier outputs in lower bits; none where symmetric
    weight_shape       int64 [2]                       out, in
    weight_g_idx       int32 [in]                      the group of each input, where act-order

Codes and zeros are signed there and stored plus the middle code, so that as stored they are unsigned ones.

Source: compressed_tensors/compressors/pack_quantized, PackedQuantizationCompressor and pack_to_int32.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from edgeqaf.errors import Refused
from edgeqaf.importing import ANEW, DAMAGED, INTEGERS, SCALES, Arrays, Codes, Layer, fields, group_size, setting

FORMAT = "pack-quantized"
SCHEME = ("num_bits", "type", "symmetric", "strategy", "group_size", "actorder")
OTHERS: dict[str, tuple[Any, ...]] = {  # what is not imported beside weights -> how it says that there is none
    "kv_cache_scheme": (None,), "sparsity_config": (None, {}), "transform_config": (None, {}),
}  # fmt: skip


class CompressedTensors:
    """See `edgeqaf.importing.Importer`."""

    parts: ClassVar[tuple[str, ...]] = (
        "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
    )  # fmt: skip

    def __init__(self, config: Mapping[str, Any]) -> None:
        setting(config, "format", None, (FORMAT,))
        for key, none in OTHERS.items():
            setting(config, key, None, none)
        weights = _scheme(config.get("config_groups"))
        self.bits: int = setting(weights, "num_bits", None, (4, 8))
        setting(weights, "type", "int", ("int",))
        self.symmetric: bool = setting(weights, "symmetric", True, (True, False))
        strategy = setting(weights, "strategy", "group", ("group", "channel"))
        self.group = -1 if strategy == "channel" else group_size(weights.get("group_size"))
        actorder = setting(weights, "actorder", None, (None, False, True, "group", "dynamic", "weight", "static"))
        self.act_order = actorder in (True, "group", "dynamic")  # of the other two, only quantizing went by it

    def layer(self, arrays: Arrays) -> Layer:
        rows, words = arrays.matrix("weight_packed")
        out, inputs = map(int, arrays.expect("weight_shape", ("I64", "I32"), (2,))())
        if rows != out or words != -(-inputs * self.bits // 32):
            raise Refused(
                f"{arrays.name}.weight_packed has shape {[rows, words]}, too many or too few for {[out, inputs]} "
                f"codes of {self.bits} bits",
                DAMAGED,
            )
        group = inputs if self.group == -1 else self.group
        groups = -(-inputs // group)
        codes = arrays.expect("weight_packed", INTEGERS, (rows, words))
        arrays.require_order("weight_g_idx", inputs, group, act_order=self.act_order and groups > 1)
        return Layer(
            (out, inputs), self.bits, group, self._zero(arrays, out, groups),
            codes=lambda: np.ascontiguousarray(fields(codes(), self.bits).reshape(out, -1)[:, :inputs]),
            scale=arrays.expect("weight_scale", SCALES, (out, groups)),
        )  # fmt: skip

    def _zero(self, arrays: Arrays, out: int, groups: int) -> Codes:
        """uint8 [out, groups]."""
        if self.symmetric and "weight_zero_point" not in arrays:
            return np.full((out, groups), 1 << (self.bits - 1), np.uint8)
        stored = arrays.expect("weight_zero_point", INTEGERS, (-(-out * self.bits // 32), groups))()
        zero = fields(stored, self.bits).transpose(0, 2, 1).reshape(-1, groups)[:out]
        if self.symmetric:
            arrays.require_middle(zero, self.bits, "symmetric")
        return zero


def _scheme(groups: Any) -> Mapping[str, Any]:
    """How the config groups store weights, which must be one way."""
    schemes = list(groups.values()) if isinstance(groups, dict) else []
    if not schemes or not all(isinstance(s, dict) and isinstance(s.get("weights"), dict) for s in schemes):
        raise Refused("quantization_config: config_groups holds no schemes of weights", DAMAGED)
    first = {key: schemes[0]["weights"].get(key) for key in SCHEME}
    for scheme in schemes:
        for key in ("input_activations", "output_activations"):
            setting(scheme, key, None, (None,))
        setting(scheme, "format", FORMAT, (FORMAT, None))
        other = {key: scheme["weights"].get(key) for key in SCHEME}
        if other != first:
            raise Refused(f"quantization_config: config_groups store weights in two ways, {first} and {other}", ANEW)
    return {key: value for key, value in first.items() if value is not None}


importer = CompressedTensors
