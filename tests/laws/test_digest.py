"""A digest changes with every bit that means something, and with none that does not."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import ALL, EVERY, GRIDS, ZERO_4, ZERO_8, random_tensor

from edgeqaf.digest import merkle_root, tensor_digest
from edgeqaf.grid import Zero
from edgeqaf.qtensor import QTensor, Supers

each_of_one_level = pytest.mark.parametrize("grid", ALL, ids=lambda grid: grid.name)
quickly = settings(max_examples=60, deadline=None, derandomize=True)
NAME = "model.layers.0.mlp.up_proj.weight"
# Computed once and written down: these may never change, or every receipt ever issued would stop matching.
GOLDEN = {
    "q4_0": "766300b4295574b491dc3dddb75e7ea97fe7448420488081d931bbe548dc1867",
    "q4_1": "2accf0dba647f7c3476f3e2c96b0f5cee5fdc7e945dbd0f32808d10521c32892",
    "q8_0": "e8ab7193cd9c8bfd3660498f669a7fc2b520f814c7c44ae207ea4bc8945f38bc",
    "q2_0": "a43d39717ea79d7b28dd572ba8091ca2d0b3f9a5223f1561779b98eadd624dc5",
    "q2_1": "055dc1d2e71b44dc7996f53a2db29cae741f7a098fecac5fb2ce73e1d2fc80c0",
    "q3_0": "8d1fdbbb567d9fbfbc51cc92b25299d3af3f17ff833bda991dc87af33d55aa6e",
    "q3_1": "57b67c5f302a8b88aeaf8bf87e174939bc7fdb73c5e629ff5cfa1d8bbe644a5f",
    "uint2": "fe70a71ae7f2bf40940a74302b26d97592746b902a10d5c88d5420da873c9086",
    "uint3": "fb770c43e6aea0449841bcd89ecdbcf5475d96f3f6a1b369e0d2c8b8fb6f3fa4",
    "uint4": "b0612954ba249dc3d66feb053a798fdc317ad217079da0356a18661961785031",
    "q2_k": "26cb40b2a5fb1f7735c16e73d67f4a103ad10c44b982fd81334a1763605a0768",
    "q3_k": "abaa0653564d98267c244409eb5a0a34aab857c9da6eb91435de00fd9d5ce243",
    "q4_k": "4e1b689d10ab1364583dbcb8ceb64ea6ffc62815a78606f6d56112144686a7f7",
    "q5_0": "e5a71240af55baad6c8774818aa6fc2ba94ef96053094035a3891b8ed1a050bd",
    "q5_1": "2e219cedc260fcfa2d7f2aa606caafc1f1bf49aafce79ac7a0829d369cc86b62",
    "q5_k": "b871e28437ba8d0ba4d66e426c58f93b2fbe350d2decab3d0a7af3de48dea0f1",
    "q6_k": "59c16eb8e97a54f956c97bc9928a99dd83604140be5a82636e845459d265fa17",
    "tq1_0": "c099ff0ea9379c5ce2607835ac29015e455d079c3768cc25c00e6df50b96cf51",
    "tq2_0": "7243a2012484ceb5038d91771826e40257925f63db7e877d9c3535a129f6217d",
    "zero_8": "66d2c082a2484a65a8c2208393e36b8f5a3703ddc9068efb01f95c1875ee57e8",
    "float32": "9fcfb03a48ce191c76870535fd7aae7c7f4d1c6dec45ac053719199ca35fd275",
}
ROOTED = ("q4_0", "q4_1", "q8_0", "zero_8", "float32")
GOLDEN_ROOT = "c036b421273cc6ad28adf6b88c8d133f5471897b995e14a405f1f56965c55354"
EMPTY_ROOT = "dbc1b4c900ffe48d575b5da5c638040125f65db0fe3e24494b76ea986457d986"  # SHA-256 of one byte 2


def golden_tensor(kind: str):
    """Small and written out: codes count up from lo and wrap, scales are 1, -0.5 and 2**-24."""
    if kind == "float32":
        return np.array([[0.0, -0.0, 1.5], [-2.0, 1e-45, 3.4e38]], np.float32)
    grid = next(g for g in EVERY if g.name == kind)
    scale = np.array([[1.0, -0.5], [2.0**-24, 65504.0]], np.float32)

    def counting(low: int, high: int, each: int) -> np.ndarray:
        count = 2 * 2 * grid.unit // each
        return (np.arange(count) % (high - low + 1) + low).astype(np.int8).reshape(2, -1)

    codes = counting(grid.lo, grid.hi, 1)
    if grid.levels is not None:
        spans = [span for span in (grid.levels.scale, grid.levels.zero) if span]
        supers = Supers(*(part for span in spans for part in (scale, counting(*span, grid.block))))
        return QTensor(grid, codes, supers.scale, supers.zero, supers)
    zeros = {
        Zero.NONE: None,
        Zero.CODE: np.minimum(np.array([[0, 7], [1, 3]], np.float32), grid.hi),
        Zero.OFFSET: np.array([[-0.0, 0.25], [-3.0, 2.0**-24]], np.float32),
    }
    return QTensor(grid, codes, scale, zeros[grid.zero])


@pytest.mark.parametrize("kind", GOLDEN)
def test_digests_of_written_down_tensors_never_change(kind):
    assert tensor_digest("golden", golden_tensor(kind)) == GOLDEN[kind]


def test_every_registered_grid_has_a_golden_digest():
    assert set(GRIDS) <= set(GOLDEN)


def test_the_bytes_that_are_hashed_are_the_documented_ones():
    q = golden_tensor("q4_1")
    header = b'{"block":32,"grid":"q4_1","name":"golden","shape":[2,64]}\0'
    parts = q.codes.tobytes() + q.scale.astype("<f2").tobytes() + q.zero.astype("<f2").tobytes()
    assert tensor_digest("golden", q) == hashlib.sha256(b"edgeqaf tensor 1\0" + header + parts).hexdigest()
    header = b'{"grid":"float32","name":"golden","shape":[2,3]}\0'
    floats = golden_tensor("float32")
    expected = hashlib.sha256(b"edgeqaf tensor 1\0" + header + floats.astype("<f4").tobytes()).hexdigest()
    assert tensor_digest("golden", floats) == expected


@quickly
@given(st.sampled_from(EVERY), st.integers(0, 2**32), st.data())
def test_any_other_code_is_another_digest(grid, seed, data):
    q = random_tensor(grid, seed)
    row, column = data.draw(st.integers(0, q.shape[0] - 1)), data.draw(st.integers(0, q.shape[1] - 1))
    codes = q.codes.copy()
    codes[row, column] = data.draw(st.integers(grid.lo, grid.hi).filter(lambda c: c != codes[row, column]))
    assert tensor_digest(NAME, q.replace(codes=codes)) != tensor_digest(NAME, q)


@quickly
@given(st.sampled_from(ALL), st.integers(0, 2**32), st.data())
def test_any_other_bit_of_a_scale_or_offset_is_another_digest(grid, seed, data):
    q = random_tensor(grid, seed)
    part = data.draw(st.sampled_from(["scale", "zero"] if grid.zero is Zero.OFFSET else ["scale"]))
    halves = getattr(q, part).astype(np.float16).view(np.uint16)
    place = data.draw(st.integers(0, halves.size - 1))
    halves.ravel()[place] ^= 1 << data.draw(st.integers(0, 15))  # the sign of a zero too
    with np.errstate(invalid="ignore"):
        changed = q.replace(**{part: halves.view(np.float16).astype(np.float32)})
    assert tensor_digest(NAME, changed) != tensor_digest(NAME, q)


@quickly
@given(st.sampled_from([ZERO_4, ZERO_8]), st.integers(0, 2**32), st.data())
def test_any_other_integer_zero_is_another_digest(grid, seed, data):
    q = random_tensor(grid, seed)
    zero = q.zero.copy()
    place = data.draw(st.integers(0, zero.size - 1))
    zero.ravel()[place] = data.draw(st.integers(grid.lo, grid.hi).filter(lambda z: z != zero.ravel()[place]))
    assert tensor_digest(NAME, q.replace(zero=zero)) != tensor_digest(NAME, q)


@quickly
@given(st.integers(0, 2**32), st.integers(0, 11), st.integers(0, 31))
def test_any_other_bit_of_a_float_is_another_digest(seed, place, bit):
    values = np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32)
    pattern = values.copy().view(np.uint32)
    pattern.ravel()[place] ^= np.uint32(1 << bit)
    assert tensor_digest(NAME, pattern.view(np.float32)) != tensor_digest(NAME, values)


@quickly
@given(st.text(max_size=20), st.text(max_size=20))
def test_any_other_name_is_another_digest(a, b):
    values = np.zeros(2, np.float32)
    assert (tensor_digest(a, values) == tensor_digest(b, values)) == (a == b)


@each_of_one_level
def test_the_same_integers_in_another_shape_are_another_tensor(grid):
    q = random_tensor(grid, out=4, blocks=2)
    zero = None if q.zero is None else q.zero.reshape(2, 4)
    reshaped = QTensor(grid, q.codes.reshape(2, -1), q.scale.reshape(2, 4), zero)
    assert reshaped.codes.tobytes() == q.codes.tobytes()
    assert tensor_digest(NAME, reshaped) != tensor_digest(NAME, q)
    floats = np.zeros((2, 3), np.float32)
    assert len({tensor_digest(NAME, floats.reshape(s)) for s in [(2, 3), (3, 2), (6,), (1, 6), (6, 1)]}) == 5


def test_the_same_integers_on_another_grid_are_another_tensor():
    q = random_tensor(GRIDS["q4_0"])
    alike = [g for g in ALL if g.zero is Zero.NONE]
    assert len({tensor_digest(NAME, QTensor(g, q.codes, q.scale)) for g in alike}) == len(alike) >= 2
    zero = np.zeros_like(q.scale)
    alike = [g for g in ALL if g.zero is not Zero.NONE]
    assert len({tensor_digest(NAME, QTensor(g, q.codes, q.scale, zero)) for g in alike}) == len(alike) >= 3


@each_of_one_level
def test_the_layout_in_memory_and_the_type_that_holds_it_do_not_matter(grid):
    q = random_tensor(grid)
    expected = tensor_digest(NAME, q)

    def each(rearranged) -> QTensor:
        zero = None if q.zero is None else rearranged(q.zero)
        return QTensor(grid, rearranged(q.codes), rearranged(q.scale), zero)

    assert tensor_digest(NAME, each(np.asfortranarray)) == expected
    assert tensor_digest(NAME, each(lambda x: np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3])) == expected
    assert tensor_digest(NAME, each(lambda x: x[::-1, ::-1].copy()[::-1, ::-1])) == expected
    assert tensor_digest(NAME, each(lambda x: x.astype(x.dtype.newbyteorder(">")))) == expected
    assert tensor_digest(NAME, q.replace(codes=q.codes.astype(np.float32))) == expected  # as inside a training step
    floats = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    assert tensor_digest(NAME, np.asfortranarray(floats)) == tensor_digest(NAME, floats)
    assert tensor_digest(NAME, floats.T.copy().T) == tensor_digest(NAME, floats)


def digests(count: int) -> dict[str, str]:
    return {f"t{i}": hashlib.sha256(bytes([i])).hexdigest() for i in range(count)}


def test_a_written_down_root_never_changes():
    assert merkle_root({kind: tensor_digest(kind, golden_tensor(kind)) for kind in ROOTED}) == GOLDEN_ROOT
    assert merkle_root({}) == EMPTY_ROOT == hashlib.sha256(b"\2").hexdigest()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17])
def test_the_root_depends_on_every_leaf_and_on_their_number(count):
    leaves = digests(count)
    root = merkle_root(leaves)
    roots = {root}
    for name, digest in leaves.items():
        roots.add(merkle_root(leaves | {name: ("0" if digest[0] != "0" else "1") + digest[1:]}))
        roots.add(merkle_root({n: d for n, d in leaves.items() if n != name}))
    roots.add(merkle_root(leaves | {"zz": leaves["t0"]}))
    roots.add(merkle_root(leaves | {"zz": root}))
    assert len(roots) == 2 * count + 3


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_the_root_is_over_sorted_names_and_tells_leaves_from_nodes(count):
    leaves = digests(count)
    assert merkle_root(dict(reversed(leaves.items()))) == merkle_root(leaves)
    swapped = leaves | {"t0": leaves["t1"], "t1": leaves["t0"]}
    assert merkle_root(swapped) != merkle_root(leaves)
    pair = [hashlib.sha256(b"\0" + bytes.fromhex(leaves[n])).digest() for n in ("t0", "t1")]
    inner = hashlib.sha256(b"\1" + pair[0] + pair[1])
    rest = {n: d for n, d in leaves.items() if n not in ("t0", "t1")}
    assert merkle_root({"t0": inner.hexdigest(), **rest}) != merkle_root(leaves)


def test_an_odd_node_is_promoted_not_doubled():
    # Doubling the last leaf would give {a, b, c} and {a, b, c, c} one root (CVE-2012-2459).
    three = digests(3)
    leaf = [hashlib.sha256(b"\0" + bytes.fromhex(d)).digest() for d in three.values()]
    pair = hashlib.sha256(b"\1" + leaf[0] + leaf[1]).digest()
    assert merkle_root(three) == hashlib.sha256(b"\1" + pair + leaf[2]).hexdigest()
    assert merkle_root(three | {"t3": three["t2"]}) != merkle_root(three)
