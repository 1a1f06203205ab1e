"""Seeded defects: ways an exporter, a disk or a merge can go wrong by very little.

Each takes a QTensor and returns one that is still well formed, so that no reader can refuse it; only
a comparison of bits can tell.
"""

from collections.abc import Callable

import numpy as np

from edgeqaf.grid import Zero
from edgeqaf.qtensor import QTensor

RNG = np.random.default_rng(7)


def _codes(q: QTensor, edit: Callable[[np.ndarray], None]) -> QTensor:  # type: ignore[type-arg]
    codes = q.codes.copy()
    edit(codes)
    return q.replace(codes=codes)


def _scale(q: QTensor, edit: Callable[[np.ndarray], None]) -> QTensor:  # type: ignore[type-arg]
    scale = q.scale.astype(np.float16)
    edit(scale)
    return q.replace(scale=scale.astype(np.float32))


def one_code_off_by_one(q: QTensor) -> QTensor:
    def edit(codes: np.ndarray) -> None:  # type: ignore[type-arg]
        codes[-1, -1] += 1 if codes[-1, -1] < q.grid.hi else -1

    return _codes(q, edit)


def one_sign_flipped(q: QTensor) -> QTensor:
    def edit(codes: np.ndarray) -> None:  # type: ignore[type-arg]
        middle = 2 * q.grid.centre if q.grid.zero is Zero.NONE else q.grid.lo + q.grid.hi
        mirrored = middle - codes.astype(int)
        row, column = np.argwhere((mirrored != codes) & (mirrored <= q.grid.hi))[0]
        codes[row, column] = mirrored[row, column]

    return _codes(q, edit)


def nibble_halves_swapped_in_one_block(q: QTensor) -> QTensor:
    def edit(codes: np.ndarray) -> None:  # type: ignore[type-arg]
        codes[1, :32] = np.roll(codes[1, :32].copy(), 16)

    return _codes(q, edit)


def neighbours_swapped_everywhere(q: QTensor) -> QTensor:
    def edit(codes: np.ndarray) -> None:  # type: ignore[type-arg]
        codes[:] = codes.reshape(len(codes), -1, 2)[:, :, ::-1].reshape(codes.shape)

    return _codes(q, edit)


def one_scale_one_ulp_off(q: QTensor) -> QTensor:
    def edit(scale: np.ndarray) -> None:  # type: ignore[type-arg]
        scale[2, 0] = np.nextafter(scale[2, 0], np.float16(np.inf))

    return _scale(q, edit)


def all_scales_two_per_cent_off(q: QTensor) -> QTensor:
    return _scale(q, lambda scale: np.copyto(scale, scale * np.float16(1.02)))


def a_row_dropped(q: QTensor) -> QTensor:
    def edit(codes: np.ndarray) -> None:  # type: ignore[type-arg]
        codes[3] = q.grid.centre

    return _codes(q, edit)


def last_block_of_each_row_dropped(q: QTensor) -> QTensor:
    def edit(codes: np.ndarray) -> None:  # type: ignore[type-arg]
        codes[:, -q.grid.block :] = q.grid.centre

    return _codes(q, edit)


def two_rows_swapped(q: QTensor) -> QTensor:
    order = np.arange(q.shape[0])
    order[[0, 1]] = 1, 0
    return _rows(q, order)


def rows_permuted_as_for_another_rope(q: QTensor) -> QTensor:
    return _rows(q, np.arange(q.shape[0]).reshape(2, -1).T.reshape(-1))


def blocks_of_a_row_swapped(q: QTensor) -> QTensor:
    def edit(scale: np.ndarray) -> None:  # type: ignore[type-arg]
        scale[0, [0, 1]] = scale[0, [1, 0]]

    return _scale(q, edit)


def zero_point_off_in_one_row(q: QTensor) -> QTensor:
    if q.grid.zero is Zero.OFFSET:
        assert q.zero is not None
        zero = q.zero.astype(np.float16)
        zero[4] = np.nextafter(zero[4], np.float16(np.inf))
        return q.replace(zero=zero.astype(np.float32))

    if q.grid.zero is Zero.CODE:
        assert q.zero is not None
        zero = q.zero.copy()
        zero[4] += np.where(zero[4] < q.grid.hi, 1, -1)
        return q.replace(zero=zero)

    def edit(codes: np.ndarray) -> None:  # type: ignore[type-arg]
        codes[4] = np.clip(codes[4].astype(int) + 1, q.grid.lo, q.grid.hi)

    return _codes(q, edit)


def a_few_low_bits_lost(q: QTensor) -> QTensor:
    def edit(codes: np.ndarray) -> None:  # type: ignore[type-arg]
        flat = codes.reshape(-1)
        chosen = RNG.choice(flat.size, max(1, flat.size // 1000), replace=False)
        flat[chosen] ^= 1

    return _codes(q, edit)


def _rows(q: QTensor, order: np.ndarray) -> QTensor:  # type: ignore[type-arg]
    return q.replace(codes=q.codes[order], scale=q.scale[order], zero=None if q.zero is None else q.zero[order])


DEFECTS = (
    one_code_off_by_one, one_sign_flipped, nibble_halves_swapped_in_one_block, neighbours_swapped_everywhere,
    one_scale_one_ulp_off, all_scales_two_per_cent_off, a_row_dropped,
    last_block_of_each_row_dropped, two_rows_swapped, rows_permuted_as_for_another_rope, blocks_of_a_row_swapped,
    zero_point_off_in_one_row, a_few_low_bits_lost,
)  # fmt: skip
