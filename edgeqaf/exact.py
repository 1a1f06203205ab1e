"""A product of two thin matrices, rounded to integers as if it had been computed without any rounding.

A float matmul's last bits depend on its shape, the thread count and the machine; a code that lies near
the middle between two integers would then differ from rank to rank. So A is snapped to multiples of
2^-16 and B to multiples of 2^-18, both bounded. Their products fit 45 bits, which leaves room for 64
terms in float64's 53: there every partial sum is exact, in any order.

`rounded_product` takes the float64 road only where it matters. The snapped factors are float32 values
too, so a float32 matmul is wrong by a bounded amount, and only entries that lie within that bound of a
rounding threshold (some in ten thousand) are computed again.
"""

from torch import Tensor

from edgeqaf.errors import UsageError

A_STEP, A_BOUND = 2.0**-16, 2.0**5
B_STEP, B_BOUND = 2.0**-18, 2.0**6
MAX_RANK = 64  # 21 + 24 bits a product, 6 more for the sum: 51


def snap_a(a: Tensor) -> Tensor:
    """A as the exact product takes it: float32 multiples of 2^-16 within +-2^5."""
    return _snap(a, A_STEP, A_BOUND)


def snap_b(b: Tensor) -> Tensor:
    """B as the exact product takes it: float32 multiples of 2^-18 within +-2^6."""
    return _snap(b, B_STEP, B_BOUND)


def exact_product(b: Tensor, a: Tensor) -> Tensor:
    """float64 [out, in]: B [out, r] @ A [r, in] of the snapped factors, with no rounding anywhere."""
    return snap_b(b).double() @ snap_a(a).double()


def rounded_product(b: Tensor, a: Tensor, factor: Tensor, start: Tensor | None = None) -> Tensor:
    """float32 [out, in]: floor(fl64(exact_product(b, a) * factor) + (start + 1/2)), to the bit.

    b: [out, r]; a: [r, in]; factor: float64 [out, blocks], one for each in / blocks columns;
    start: None for zero, or float32 multiples of 1/128 in [-1/2, 1/2), [out, in].
    """
    b, a = snap_b(b), snap_a(a)
    blocks = *factor.shape, a.shape[1] // factor.shape[1]
    value = (b @ a).view(blocks).mul_(factor.float()[..., None])
    value.add_(0.5 if start is None else (start + 0.5).view(blocks))
    steps = value.floor()
    distance = value.sub_(steps).sub_(0.5).abs_()  # from the middle: 1/2 is at a threshold
    largest = b.abs().sum(1) * a.abs().max()
    error = (largest[:, None] * factor.abs().float() + 1) * error_units(len(a))
    doubtful = (distance > (0.5 - error)[..., None]).view(len(b), -1).nonzero(as_tuple=True)
    steps = steps.view(len(b), -1)
    if len(doubtful[0]):
        row, column = doubtful
        exact = (b[row].double() * a.T[column].double()).sum(1)
        half = 0.5 if start is None else start[row, column].double() + 0.5
        steps[row, column] = (exact * factor[row, column // blocks[2]]).add_(half).floor_().float()
    return steps


def error_units(rank: int) -> float:
    """How wrong a float32 product times a factor plus a half may be, in units of |b| |a| |factor| summed, plus one.

    The unit roundoff for every operation on the way, and room for floor's argument.
    """
    return (rank + 6) * 2.0**-24


def require_exact(method: str, rank: int) -> None:
    """Refuse a rank whose products would not be exact."""
    if not 1 <= rank <= MAX_RANK:
        raise UsageError(f"{method}: rank {rank} is outside 1..{MAX_RANK}", "beyond it the product is not exact")


def _snap(x: Tensor, step: float, bound: float) -> Tensor:
    return (x.float() / step).round_().clamp_(-bound / step, bound / step).mul_(step)
