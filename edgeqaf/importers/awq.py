"""AWQ checkpoints of version gemm, as AutoAWQ, GPTQModel and AutoRound write them.

    qweight  int32 [in, out / 8]      codes of eight outputs a word, in the order `ORDER`, the first in the lowest bits
    qzeros   int32 [groups, out / 8]  zeros, likewise; may be missing where zero_point is false
    scales   float16 [groups, out]

Source: awq/modules/linear/gemm.py, WQLinear_GEMM.from_linear.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from edgeqaf.errors import Refused
from edgeqaf.importing import ANEW, INTEGERS, SCALES, Arrays, Codes, Layer, fields, group_size, setting
from edgeqaf.tensorfile import Array

BITS, EACH = 4, 8  # of a code; codes in a word
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of a word's eight outputs each four bits belong to


class AWQ:
    """See `edgeqaf.importing.Importer`."""

    parts: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")

    def __init__(self, config: Mapping[str, Any]) -> None:
        setting(config, "bits", None, (BITS,))
        self.group = group_size(config.get("group_size"))
        self.symmetric = not setting(config, "zero_point", True, (True, False))
        key = "format" if config.get("version") is None else "version"
        version = str(config.get(key, "gemm")).lower()
        if version != "gemm" or config.get("backend") == "llm-awq":
            what = f"{key} is {config[key]!r}" if version != "gemm" else "backend is 'llm-awq'"
            raise Refused(
                f"quantization_config: {what}, whose words hold the codes in another order; imported: 'gemm'",
                "take a checkpoint of version gemm, or " + ANEW,
            )

    def layer(self, arrays: Arrays) -> Layer:
        inputs, words = arrays.matrix("qweight")
        out, group = words * EACH, inputs if self.group == -1 else self.group
        groups = -(-inputs // group)
        codes = arrays.expect("qweight", INTEGERS, (inputs, words))
        scale = arrays.expect("scales", SCALES, (groups, out))
        zero = np.full((out, groups), 1 << (BITS - 1), np.uint8)
        if "qzeros" in arrays or not self.symmetric:
            zero = _outputs(arrays.expect("qzeros", INTEGERS, (groups, words))())
        if self.symmetric:
            arrays.require_middle(zero, BITS, "zero_point: false")
        return Layer((out, inputs), BITS, group, zero, codes=lambda: _outputs(codes()), scale=lambda: scale().T)


def _outputs(words: Array) -> Codes:
    """int32 [n, out / 8] -> uint8 [out, n]."""
    rows = fields(words, BITS)[..., np.argsort(ORDER)].reshape(len(words), -1)
    return np.ascontiguousarray(rows.T)


importer = AWQ
