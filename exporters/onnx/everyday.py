"""How large the everyday profile's folder will be, before anything is traced."""

from collections.abc import Mapping

from edgeqaf.checkpoint import QModel
from edgeqaf.exportoptions import OnnxOptions
from edgeqaf.grid import Zero
from edgeqaf.source import EMBEDDING
from exporters.onnx.data import placed
from exporters.onnx.linear import Kind

# Measured bytes of model.onnx and genai_config.json: once, per layer, with a softcap, per tensor, per float zero.
_GRAPH_BYTES, _LAYER_BYTES, _SOFTCAP_BYTES, _TENSOR_BYTES, _OFFSET_BYTES = 3_000, 5_850, 2_800, 195, 1_188


def size(model: QModel, kept: Mapping[str, Kind]) -> int:
    """Bytes of the folder, companions apart, within a per cent."""
    asked = model.asked.onnx
    offsets = sum(grid is not None and grid.zero is Zero.OFFSET for _, grid in kept.values())
    layer = _LAYER_BYTES + (_SOFTCAP_BYTES if model.config.get("attn_logit_softcapping") else 0)
    layers: int = model.config["num_hidden_layers"]
    graph = _GRAPH_BYTES + layer * layers + _TENSOR_BYTES * len(kept) + _OFFSET_BYTES * offsets
    return placed(kept, asked.form).size + graph + _further_bytes(kept, asked)


def _further_bytes(kept: Mapping[str, Kind], asked: OnnxOptions) -> int:
    """What the nodes asked for take beside those of the default form, and what looks up a quantized embedding."""
    from exporters.onnx.linear import linear
    from exporters.onnx.lookup import lookup, views

    further = 0
    for name, kind in kept.items():
        if kind[1] is not None:
            own, default = (sum(n.ByteSize() for n in linear(name, kind, "", "", a)) for a in (asked, OnnxOptions()))
            further += own - default
            if name == EMBEDDING:
                further += sum(n.ByteSize() + 3 for n in lookup(name, kind, "input_ids", "", asked.form))
                further += sum(3 * len(part.name) + 64 for part, _ in views(name, kind, asked.form))
    return further
