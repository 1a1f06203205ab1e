"""Attention in the traced program, rid of what only moves data.

torch traces it as transformers writes it, with heads before tokens and a cache that grows by a Concat:

    Reshape -> Transpose -> RotaryEmbedding -> Concat(past, .) -> Attention -> Transpose -> Reshape

The operator itself takes the cache, and heads side by side, as a projection gives them:

    RotaryEmbedding -> Attention(past)

Both do the same arithmetic on the same numbers in the same order, so no bit changes. Where something is not known here
that lies between a projection and its heads (a part of each rotated, say), only the cache goes to the operator.
"""

from typing import Any

TURN = [0, 2, 1, 3]  # from [batch, tokens, heads, size] to [batch, heads, tokens, size], and back
SIDE_BY_SIDE = "side_by_side"  # an initializer, by which [batch, tokens, heads, size] becomes [batch, tokens, all]


def simplify(model: Any, heads: int, kv_heads: int) -> None:
    """Rewrite each Attention node of an onnx_ir.Model, in place."""
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model.graph.initializers.add(ir.val(SIDE_BY_SIDE, const_value=ir.tensor([0, 0, -1], name=SIDE_BY_SIDE)))
    for node in [node for node in model.graph if node.op_type == "Attention"]:
        _rewrite(model.graph, node, heads, kv_heads)
    RemoveUnusedNodesPass()(model)


def _rewrite(graph: Any, old: Any, heads: int, kv_heads: int) -> None:
    import onnx_ir as ir

    query, keys, values, mask = old.inputs
    grown = [keys.producer(), values.producer()]
    assert [node.op_type for node in grown] == ["Concat", "Concat"]
    (past_key, key), (past_value, value) = (node.inputs for node in grown)
    made: list[Any] = []
    attributes = {attribute.name: attribute for attribute in old.attributes.values()}
    inputs, result, end = [query, key, value], old.outputs[0], _side_by_side(old.outputs[0])
    flat = [_flat(each, count, made) for each, count in zip(inputs, (heads, kv_heads, kv_heads), strict=True)]
    if end is not None and None not in flat:
        inputs, result = flat, end
        attributes |= {"q_num_heads": heads, "kv_num_heads": kv_heads}
    else:
        made.clear()
    new = ir.node("Attention", [*inputs, mask, past_key, past_value], attributes, num_outputs=3)
    replaced = [result, keys, values]
    ir.convenience.replace_nodes_and_values(graph, old, [], [*made, new], replaced, new.outputs)


def _side_by_side(result: Any) -> Any:
    """The value [batch, tokens, heads * size] that an attention's result is brought to, or None."""
    for op, wanted in (("Transpose", TURN), ("Reshape", None)):
        users = list(result.uses())
        if len(users) != 1 or users[0].node.op_type != op or (wanted and not _turns(users[0].node)):
            return None
        result = users[0].node.outputs[0]
    return result


def _flat(value: Any, heads: int, made: list[Any]) -> Any:
    """``value``, [batch, heads, tokens, size], with heads side by side, by nodes added to ``made``; or None."""
    import onnx_ir as ir

    node = value.producer()
    if node.op_type == "RotaryEmbedding":
        rotated, *angles = node.inputs
        if (inner := _flat(rotated, heads, made)) is None:
            return None
        made.append(ir.node("RotaryEmbedding", [inner, *angles], {**node.attributes, "num_heads": heads}))
    elif node.op_type == "RMSNormalization" and _turns(turn := node.inputs[0].producer()):
        made.append(ir.node("RMSNormalization", [turn.inputs[0], *node.inputs[1:]], dict(node.attributes)))
        made.append(_beside(made[-1].outputs[0], node))
    elif not _turns(node):
        return None
    elif (split := node.inputs[0].producer()).op_type == "Reshape" and len(split.inputs[0].shape) == 3:
        return split.inputs[0]
    else:
        made.append(_beside(node.inputs[0], node))
    return made[-1].outputs[0]


def _beside(heads: Any, near: Any) -> Any:
    import onnx_ir as ir

    return ir.node("Reshape", [heads, near.graph.initializers[SIDE_BY_SIDE]])


def _turns(node: Any) -> bool:
    return node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == TURN
