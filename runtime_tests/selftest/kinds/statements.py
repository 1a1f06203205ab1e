"""What an artifact says beside its tensors, changed by one who wants to be believed: the seal fits afterwards.

A GGUF file's metadata come as values by key (each with ``data``), an ONNX folder's program as an onnx.ModelProto.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from runtime_tests.selftest.registry import Random, statement

Change = Callable[[Any], Any]  # the old data -> the new


def _key(metadata: dict[str, Any], ending: str, change: Change) -> bool:
    """Change the value whose key ends so; False where there is none."""
    key = next((key for key in metadata if key.endswith(ending)), None)
    if key is None:
        return False
    metadata[key] = replace(metadata[key], data=change(metadata[key].data))
    return True


@statement("gguf")
def rotation_base_changed(metadata: Any, rng: Random) -> bool:
    return _key(metadata, "rope.freq_base", lambda base: base * 1.01)


@statement("gguf")
def rotation_scaled(metadata: Any, rng: Random) -> bool:
    """Linear scaling of positions by 2, which the model does not have."""
    key = next(k for k in metadata if k.endswith("rope.freq_base"))
    arch = key.partition(".")[0]
    scaled = f"{arch}.rope.scaling.factor" in metadata
    metadata[f"{arch}.rope.scaling.type"] = replace(metadata["general.architecture"], data=b"linear")
    metadata[f"{arch}.rope.scaling.factor"] = replace(metadata[key], data=2.0 if not scaled else 3.0)
    return True


@statement("gguf")
def norm_epsilon_changed(metadata: Any, rng: Random) -> bool:
    return _key(metadata, "layer_norm_rms_epsilon", lambda eps: eps * 10)


@statement("gguf")
def norm_epsilon_one_ulp_off(metadata: Any, rng: Random) -> bool:
    return _key(metadata, "layer_norm_rms_epsilon", lambda eps: float(np.nextafter(np.float32(eps), np.float32(1))))


@statement("gguf")
def fewer_key_value_heads(metadata: Any, rng: Random) -> bool:
    return _key(metadata, "attention.head_count_kv", lambda heads: heads // 2 or 2)


@statement("gguf")
def more_heads(metadata: Any, rng: Random) -> bool:
    """Twice as many, of half the size: every matrix keeps its shape."""
    doubled = [_key(metadata, e, lambda n: 2 * n) for e in ("attention.head_count", "attention.head_count_kv")]
    halved = [_key(metadata, e, lambda n: n // 2) for e in ("key_length", "value_length", "rope.dimension_count")]
    return any(doubled + halved)


@statement("gguf")
def attention_scaled(metadata: Any, rng: Random) -> bool:
    """A scale of attention that the model does not have."""
    key = next(k for k in metadata if k.endswith("layer_norm_rms_epsilon"))
    metadata[key.replace("layer_norm_rms_epsilon", "scale")] = replace(metadata[key], data=0.1)
    return True


@statement("gguf")
def context_doubled(metadata: Any, rng: Random) -> bool:
    return _key(metadata, ".context_length", lambda length: 2 * length)


@statement("gguf")
def file_type_changed(metadata: Any, rng: Random) -> bool:
    return _key(metadata, "general.file_type", lambda kind: kind + 1)


@statement("gguf")
def another_quantization_version(metadata: Any, rng: Random) -> bool:
    return _key(metadata, "general.quantization_version", lambda version: version + 1)


@statement("gguf")
def begin_token_not_added(metadata: Any, rng: Random) -> bool:
    return _key(metadata, "add_bos_token", lambda flag: 1 - int(flag))


@statement("gguf")
def another_end_token(metadata: Any, rng: Random) -> bool:
    return _key(metadata, "eos_token_id", lambda token: token + 1)


@statement("gguf")
def chat_template_changed(metadata: Any, rng: Random) -> bool:
    return _key(metadata, "chat_template", lambda text: text[:-1] + bytes([text[-1] ^ 1]))


@statement("gguf")
def two_pieces_of_the_vocabulary_exchanged(metadata: Any, rng: Random) -> bool:
    def exchange(pieces: list[bytes]) -> list[bytes]:
        one, other = rng.choice(np.arange(3, len(pieces)), 2, replace=False)
        made = list(pieces)
        made[one], made[other] = made[other], made[one]
        return made

    return _key(metadata, "ggml.tokens", exchange)


@statement("gguf")
def last_merge_dropped(metadata: Any, rng: Random) -> bool:
    return _key(metadata, "ggml.merges", lambda merges: merges[:-1])


@statement("gguf")
def another_cut_into_words(metadata: Any, rng: Random) -> bool:
    return _key(metadata, "ggml.pre", lambda name: b"qwen2" if name != b"qwen2" else b"gpt-2")


@statement("onnx")
def norm_epsilon_in_the_program_changed(model: Any, rng: Random) -> bool:
    """The attribute of a norm's operator; where norms are many small operations, the constant."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f *= 10
                return True
    return _constant(model, lambda values: values.size == 1 and 0 < values.item() < 1e-3, lambda v: v * 10, rng)


@statement("onnx")
def rotation_in_the_program_changed(model: Any, rng: Random) -> bool:
    """One of the frequencies, or of the table of their cosines and sines: the largest float constant."""
    inside = [values.size for _, values in _constants(model)]
    return _constant(model, lambda values: values.size == max(inside), lambda v: v * np.float32(1.01), rng)


@statement("onnx")
def attention_scale_in_the_program_changed(model: Any, rng: Random) -> bool:
    """The attribute of the operator; where attention is many small operations, a factor."""
    from onnx import helper

    for node in model.graph.node:
        if node.op_type == "Attention":
            kept = [a for a in node.attribute if a.name != "scale"]
            node.ClearField("attribute")
            node.attribute.extend([*kept, helper.make_attribute("scale", 0.1)])
            return True
    return _constant(model, lambda values: values.size == 1 and 1e-3 < abs(values.item()) < 1, lambda v: v * 2, rng)


@statement("onnx")
def a_constant_of_the_program_one_ulp_off(model: Any, rng: Random) -> bool:
    return _constant(model, lambda values: True, lambda v: np.nextafter(v, np.float32(np.inf)), rng)


@statement("onnx")
def an_operation_replaced(model: Any, rng: Random) -> bool:
    """The activation between the matrices of a layer, or whatever else squashes."""
    for node in model.graph.node:
        if node.op_type in ("Sigmoid", "Tanh", "Swish", "Silu", "Softmax", "Clip", "Where"):
            node.op_type = "Tanh" if node.op_type == "Sigmoid" else "Sigmoid" if node.op_type != "Where" else "Max"
            return True
    return False


@statement("onnx")
def two_operations_exchange_their_inputs(model: Any, rng: Random) -> bool:
    able = [n for n in model.graph.node if n.op_type == "Add" and len(n.input) == 2]
    if len(able) < 2:
        return False
    one, other = (able[i] for i in rng.choice(len(able), 2, replace=False))
    one.input[0], other.input[1] = other.input[1], one.input[0]
    return True


@statement("onnx")
def another_axis_of_dequantizing(model: Any, rng: Random) -> bool:
    return _attribute(model, "DequantizeLinear", "axis", lambda axis: 1 - axis)


@statement("onnx")
def another_block_of_dequantizing(model: Any, rng: Random) -> bool:
    return _attribute(model, "DequantizeLinear", "block_size", lambda size: 2 * size)


@statement("onnx")
def another_accuracy_level(model: Any, rng: Random) -> bool:
    """Of ONNX Runtime's own operator: 4 rounds activations to 8 bits."""
    return _attribute(model, "MatMulNBits", "accuracy_level", lambda level: 4 if level != 4 else 1)


@statement("onnx")
def another_accuracy_level_that_the_metadata_confirm(model: Any, rng: Random) -> bool:
    """In every operator, and in what the file says was asked of its export."""
    found = [
        a for n in model.graph.node if n.op_type == "MatMulNBits" for a in n.attribute if a.name == "accuracy_level"
    ]
    for attribute in found:
        attribute.i = 4 if attribute.i != 4 else 1
    for entry in model.metadata_props:
        for old, new in (("1", "4"), ("4", "1")):
            if f'"accuracy_level":{old}' in entry.value and found:
                entry.value = entry.value.replace(f'"accuracy_level":{old}', f'"accuracy_level":{new}')
                return True
    return False


@statement("onnx")
def another_width_of_codes(model: Any, rng: Random) -> bool:
    return _attribute(model, "MatMulNBits", "bits", lambda bits: 8 if bits == 4 else 4)


def _attribute(model: Any, operator: str, name: str, change: Change) -> bool:
    """Change an attribute of the first such operator."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == operator and attribute.name == name:
                attribute.i = change(attribute.i)
                return True
    return False


def _constants(model: Any) -> list[tuple[Any, Any]]:
    """(initializer, values) of the float constants that are inside the program."""
    from onnx import TensorProto, numpy_helper

    inside = [t for t in model.graph.initializer if not t.external_data and t.data_type == TensorProto.FLOAT]
    return [(t, values) for t in inside if (values := numpy_helper.to_array(t)).size]


def _constant(model: Any, fits: Callable[[Any], bool], change: Change, rng: Random) -> bool:
    """Change one element of one float constant."""
    from onnx import numpy_helper

    able = [(t, values) for t, values in _constants(model) if fits(values)]
    if not able:
        return False
    tensor, values = able[rng.integers(len(able))]
    made = np.array(values)
    flat = made.reshape(-1)
    i = int(rng.choice(np.flatnonzero(flat))) if flat.any() else 0
    flat[i] = change(flat[i]) if flat[i] else 1
    tensor.CopyFrom(numpy_helper.from_array(made, tensor.name))
    return True
