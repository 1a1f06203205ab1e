"""R1 and R2: every quantized matrix by itself, as the runtime decodes it and as its kernels multiply with it."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Configuration, Session, Stored
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.report import Check, compare_bits
from edgeqaf.runs import beside, cuts
from runtime_tests import probes
from runtime_tests.expected import Quantized
from runtime_tests.job import Job
from runtime_tests.probes import culprit
from runtime_tests.tally import Tally, listed

AT_ONCE = 2**25  # weights that a runtime decodes at once
PIECE = 2**22  # of which so many are compared at once: what memory is kept for, between one piece and the next
Probing = Callable[[QTensor, Configuration], Iterable[probes.Batch]]


def checks(job: Job, session: Session, version: str, probing: Probing = probes.batches) -> list[Check]:
    """R1 and R2, one tensor after the other. probing: what makes the probes, for one who asks several the same.

    Raises RuntimeAbsent where this configuration has a kernel for no tensor.
    """
    weights, kernels = Tally(), Kernels(job, session)
    for name, stored, q, probed in beside(_questions(job, probing, kernels.absent)):
        if probed:
            kernels.ask(name, stored, probed)
        else:
            _decoded(weights, session, name, stored, q)
            kernels.begin(name, stored, q)
    return [weights.check("R1", job, version), kernels.check()]


def _questions(
    job: Job, probing: Probing, absent: Container[str]
) -> Iterator[tuple[str, Stored, QTensor, list[probes.Batch]]]:
    """Each tensor by itself, which is first asked for whole; then with the probes of it that are fed at once.

    absent: tensors of which no more probes are wanted. What is made here is made while the runtime answers.
    """
    for name, stored, q in _quantized(job):
        yield name, stored, q, []
        for together in _together(probing(q, job.configuration)):
            if name in absent:
                break
            yield name, stored, q, together


def _quantized(job: Job) -> Iterator[tuple[str, Stored, QTensor]]:
    """(logical name, where it is stored, what it is held against) of each quantized tensor; each is read once."""
    own = isinstance(job.expected, Quantized) and job.expected.tensors is job.artifact.tensors
    for name, stored, q in job.artifact.quantized():
        yield name, stored, q if own else job.expected[name]


def _decoded(tally: Tally, session: Session, name: str, stored: Stored, q: QTensor) -> None:
    """R1: the runtime's own decode equals ours."""
    for start, stop in cuts(q.shape, most=AT_ONCE):
        found, shape = session.weights(stored, slice(start, stop)), (stop - start, q.shape[1])
        pieces = cuts(shape, most=PIECE) if found.shape == shape else [(0, stop - start)]
        for first, last in pieces:
            expected = decode(q.rows(start + first, start + last))
            piece = found[first:last] if found.shape == shape else found
            place = partial(_further, start + first)
            tally.add(name, expected, piece, compare_bits(expected, piece), place=place)


def _further(first: int, row: int, column: int) -> tuple[int, int]:
    return first + row, column


class Kernels:
    """R2: read-back of every weight, and integer probes, through the runtime's own matmul."""

    def __init__(self, job: Job, session: Session) -> None:
        self._job, self._session, self._tally = job, session, Tally()
        self._sums = self._certain = 0
        self.absent: dict[str, RuntimeAbsent] = {}  # of a tensor's type and shape; another configuration covers it

    def begin(self, name: str, stored: Stored, q: QTensor) -> None:
        """See whether there is a kernel for a tensor."""
        self._q = q
        try:
            self._session.linear(stored, np.zeros((1, q.shape[1]), np.float32))
        except RuntimeAbsent as reason:
            self.absent[name] = reason
            return
        self._tally.tensors.add(name)

    def ask(self, name: str, stored: Stored, probed: Sequence[probes.Batch]) -> None:
        """Feed some probes of the tensor that was begun."""
        if name in self.absent:
            return
        found = self._session.linear(stored, np.concatenate([batch.x for batch in probed]))
        answers = np.split(found, np.cumsum([len(batch.x) for batch in probed])[:-1])
        for batch, answer in zip(probed, answers, strict=True):
            self._compare(name, self._q, batch, answer)

    def _compare(self, name: str, q: QTensor, batch: probes.Batch, found: Floats) -> None:
        different = compare_bits(batch.expected, found) & batch.certified
        if batch.inputs is None:
            self._sums += batch.certified.size
            self._certain += int(batch.certified.sum())
            self._tally.add(name, batch.expected, found, different, count=0)
        else:
            weights = int((batch.inputs >= 0).sum()) * q.shape[0]
            self._tally.add(name, batch.expected, found, different, weights, partial(culprit, batch, q, found))

    def check(self) -> Check:
        if self.absent and not self._tally.tensors:
            raise next(iter(self.absent.values()))
        detail = f"and {self._certain} of {self._sums} probe sums within the exactness budget"
        if self.absent:
            detail += f"; {len(self.absent)} tensors have no layout here ({listed(sorted(self.absent))})"
        return self._tally.check("R2", self._job, detail)


def _together(batches: Iterable[probes.Batch]) -> Iterator[list[probes.Batch]]:
    """Batches that are asked at once: some runtimes decode the matrix again whenever they are asked."""
    waiting: list[probes.Batch] = []
    for batch in batches:
        rows = sum(len(other.x) for other in (*waiting, batch))
        if waiting and (rows > probes.ROWS or rows * batch.expected.shape[1] > probes.ANSWERS):
            yield waiting
            waiting = []
        waiting = [*waiting, batch]
    if waiting:
        yield waiting
