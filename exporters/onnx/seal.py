"""What a model file says of itself beside its program: the grids, how it was asked for, and a digest of all of it.

The digest is SHA-256 of the whole file with sixty-four zeros in its own place, so no bit of the file can change unseen.
It protects against damage and careless tools, not against one who computes it anew: what a program's linears are and
where their weights lie is checked beside it.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

GRIDS = "edgeqaf.grids"  # metadata key: {logical name: grid name} of the quantized tensors, as JSON
FORM = "edgeqaf.asked"  # metadata key: `edgeqaf.exportoptions.OnnxOptions`, as JSON
SHAPES = "edgeqaf.shapes"  # metadata key of the exact profile: {logical name: shape} of every tensor, as JSON
SEAL = "edgeqaf.sha256"  # metadata key: the digest, in hex
BLANK = b"0" * 64


def sealed(model: Any, entries: Mapping[str, str]) -> bytes:
    """The file of an onnx.ModelProto with these metadata and its seal."""
    from onnx import helper

    helper.set_model_props(model, {**entries, SEAL: BLANK.decode()})
    raw: bytes = model.SerializeToString(deterministic=True)
    assert raw.count(BLANK) == 1
    return raw.replace(BLANK, hashlib.sha256(raw).hexdigest().encode())


def seal_fits(raw: bytes, seal: str) -> bool:
    """Whether the file holds its own digest."""
    found = seal.encode("ascii", "replace")
    return len(found) == 64 and raw.count(found) == 1 and hashlib.sha256(raw.replace(found, BLANK)).hexdigest() == seal
