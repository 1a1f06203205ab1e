"""R1 and R2: every quantized matrix by itself, as the runtime decodes it and as its kernels multiply with it."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np

from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Configuration, Session, Stored
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.report import Check, compare_bits
from edgeqaf.runs import cuts
from runtime_tests import probes
from runtime_tests.expected import Quantized
from runtime_tests.job import Job
from runtime_tests.probes import culprit
from runtime_tests.tally import Tally, listed

AT_ONCE = 2**25  # weights that are decoded at once
Probing = Callable[[QTensor, Configuration], Iterable[probes.Batch]]


def checks(job: Job, session: Session, version: str, probing: Probing = probes.batches) -> list[Check]:
    """R1 and R2, one tensor after the other. probing: what makes the probes, for one who asks several the same.

    Raises RuntimeAbsent where this configuration has a kernel for no tensor.
    """
    weights, kernels = Tally(), Kernels(job, session, probing)
    for name, stored, q in _quantized(job):
        _decoded(weights, session, name, stored, q)
        kernels.ask(name, stored, q)
    return [weights.check("R1", job, version), kernels.check()]


def _quantized(job: Job) -> Iterator[tuple[str, Stored, QTensor]]:
    """(logical name, where it is stored, what it is held against) of each quantized tensor; each is read once."""
    own = isinstance(job.expected, Quantized) and job.expected.tensors is job.artifact.tensors
    for name, stored, q in job.artifact.quantized():
        yield name, stored, q if own else job.expected[name]


def _decoded(tally: Tally, session: Session, name: str, stored: Stored, q: QTensor) -> None:
    """R1: the runtime's own decode equals ours."""
    for first, last in cuts(q.shape, most=AT_ONCE):
        found, expected = session.weights(stored, slice(first, last)), decode(q.rows(first, last))
        tally.add(name, expected, found, compare_bits(expected, found), place=partial(_further, first))


def _further(first: int, row: int, column: int) -> tuple[int, int]:
    return first + row, column


class Kernels:
    """R2: read-back of every weight, and integer probes, through the runtime's own matmul."""

    def __init__(self, job: Job, session: Session, probing: Probing) -> None:
        self._job, self._session, self._probing, self._tally = job, session, probing, Tally()
        self._sums = self._certain = 0
        self._absent: dict[str, RuntimeAbsent] = {}

    def ask(self, name: str, stored: Stored, q: QTensor) -> None:
        try:
            self._session.linear(stored, np.zeros((1, q.shape[1]), np.float32))
        except RuntimeAbsent as reason:  # of this tensor's type and shape; another configuration covers it
            self._absent[name] = reason
            return
        self._tally.tensors.add(name)
        for batch in self._probing(q, self._job.configuration):
            found = self._session.linear(stored, batch.x)
            different = compare_bits(batch.expected, found) & batch.certified
            if batch.inputs is None:
                self._sums += batch.certified.size
                self._certain += int(batch.certified.sum())
                self._tally.add(name, batch.expected, found, different, count=0)
            else:
                weights = int((batch.inputs >= 0).sum()) * q.shape[0]
                self._tally.add(name, batch.expected, found, different, weights, partial(culprit, batch, q, found))

    def check(self) -> Check:
        if self._absent and not self._tally.tensors:
            raise next(iter(self._absent.values()))
        detail = f"and {self._certain} of {self._sums} probe sums within the exactness budget"
        if self._absent:
            detail += f"; {len(self._absent)} tensors have no layout here ({listed(sorted(self._absent))})"
        return self._tally.check("R2", self._job, detail)
