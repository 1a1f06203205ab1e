"""GPTQ checkpoints, as AutoGPTQ, GPTQModel and optimum write them (checkpoint_format gptq and gptq_v2).

    qweight  int32 [in * bits / 32, out]      codes, earlier inputs in lower bits
    qzeros   int32 [groups, out * bits / 32]  zeros, earlier outputs in lower bits; "gptq" keeps them minus one
    scales   float16 [groups, out]
    g_idx    int32 [in]                       the group of each input

Source: auto_gptq/nn_modules/qlinear/qlinear_cuda.py, QuantLinear.pack; gptqmodel/utils/model.py,
convert_gptq_v1_to_v2_format_module.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from edgeqaf.errors import Refused
from edgeqaf.importing import INTEGERS, SCALES, Arrays, Codes, Layer, fields, group_size, setting

MINUS_ONE = "gptq"  # the format that keeps zeros minus one
V2 = "gptq_v2"


class GPTQ:
    """See `edgeqaf.importing.Importer`."""

    parts: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.bits: int = setting(config, "bits", None, (4, 8))
        self.group = group_size(config.get("group_size"))
        self.symmetric: bool | None = setting(config, "sym", None, (True, False, None))
        self.act_order: bool = setting(config, "desc_act", False, (True, False))
        key = "format" if config.get("checkpoint_format") is None else "checkpoint_format"
        self.format: str = setting(config, key, MINUS_ONE, (MINUS_ONE, V2))
        setting(config, "is_marlin_format", False, (False,))

    def layer(self, arrays: Arrays) -> Layer:
        words, out = arrays.matrix("qweight")
        inputs = words * 32 // self.bits
        group = inputs if self.group == -1 else self.group
        groups = -(-inputs // group)
        codes = arrays.expect("qweight", INTEGERS, (words, out))
        scale = arrays.expect("scales", SCALES, (groups, out))
        arrays.require_order("g_idx", inputs, group, act_order=self.act_order and groups > 1)
        return Layer(
            (out, inputs), self.bits, group, self._zero(arrays, groups, out),
            codes=lambda: fields(codes().T, self.bits).reshape(out, inputs),
            scale=lambda: scale().T,
        )  # fmt: skip

    def _zero(self, arrays: Arrays, groups: int, out: int) -> Codes:
        """uint8 [out, groups]."""
        stored = arrays.expect("qzeros", INTEGERS, (groups, -(-out * self.bits // 32)))()
        zero = np.ascontiguousarray(fields(stored, self.bits).reshape(groups, -1).T[:out])
        if self.format == MINUS_ONE:
            highest = (1 << self.bits) - 1
            if (zero == highest).any():
                row, column = map(int, np.argwhere(zero == highest)[0])
                raise Refused(
                    f"{arrays.name}.qzeros: row {row}, group {column} stores zero {highest} in the format gptq, which "
                    f"keeps zeros minus one: some tools read it as {highest + 1}, others as 0, and others carry into "
                    "the next row's",
                    "have the tool that made the checkpoint save it as gptq_v2, which says which",
                )
            zero += 1
        if self.symmetric:
            remedy = "if every zero is one too high, it stores them as gptq_v2 does: set checkpoint_format to gptq_v2"
            arrays.require_middle(zero, self.bits, "sym", remedy)
        return zero


importer = GPTQ
