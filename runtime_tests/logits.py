"""R4: the logits of a whole model, held against PyTorch's."""

import numpy as np
from numpy.typing import NDArray

from edgeqaf import witness
from edgeqaf.digest import Floats
from edgeqaf.protocols import Form, Session
from edgeqaf.report import Check, Verdict, compare_bits, first_difference
from runtime_tests.job import Job, subject


def same_bits(job: Job, session: Session, logits: list[Floats]) -> Check:
    """Logits and those of PyTorch's run of the same program, which has one result."""
    expected = np.concatenate(list(job.bits))
    found = np.concatenate(logits).astype(np.float32, copy=False)
    if found.shape != expected.shape:
        return Check("R4", subject(job), Verdict.DIFFERENT, len(logits), unit="logits", detail="another shape")
    different = compare_bits(expected, found)
    first = first_difference("logits", expected, found, different) if different.any() else None
    verdict = Verdict.DIFFERENT if first else Verdict.EXACT
    detail = f"PyTorch's bits of this program, SHA-256 {witness.digest(list(job.bits))[:16]}; {_tokens(job, session)}"
    return Check("R4", subject(job), verdict, len(logits), expected.size, int(different.sum()), "logits", detail, first)


def bounded(job: Job, session: Session, logits: list[Floats]) -> Check:
    """Bounded against PyTorch's logits, with greedy agreement, or different if they make no sense."""
    fits = all(a.shape == b.shape and np.isfinite(b).all() for a, b in zip(job.reference, logits, strict=True))
    if not fits:
        return Check(
            "R4", subject(job), Verdict.DIFFERENT, len(logits), unit="logits", detail="not finite, or another shape"
        )
    expected, found = np.concatenate(list(job.reference)), np.concatenate(logits)
    agree = int((expected.argmax(-1) == found.argmax(-1)).sum())
    error = float(np.abs(expected - found).max() / (expected.max() - expected.min()))
    cause = "8-bit activations" if job.configuration.int8_activations else "order of float32 sums"
    if job.configuration.offset_form is Form.HALF:
        cause = "float16 weights and activations"
    if job.configuration.exact_sums and not job.configuration.int8_activations:
        cause = "16-bit activations"
    detail = (
        f"greedy {agree}/{len(expected)}, KL {_divergence(expected, found):.1e}, max error {error:.1e} of the range "
        f"({cause}); {_tokens(job, session)}"
    )
    differing = int(compare_bits(expected, found).sum())
    verdict = Verdict.BOUNDED if differing else Verdict.EXACT
    return Check("R4", subject(job), verdict, len(logits), expected.size, differing, "logits", detail)


def _tokens(job: Job, session: Session) -> str:
    """Whether the runtime's tokenizer is PyTorch's."""
    same = sum(session.encode(text) == list(ids) for text, ids in zip(job.texts, job.tokens, strict=True))
    return f"tokenizer equal on {same}/{len(job.texts)}"


def _divergence(expected: Floats, found: Floats) -> float:
    """Mean Kullback-Leibler divergence over positions, in nats."""

    def log_softmax(x: Floats) -> NDArray[np.float64]:
        shifted = x.astype(np.float64) - x.max(-1, keepdims=True)
        result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        return result

    p, q = log_softmax(expected), log_softmax(found)
    return max(0.0, float((np.exp(p) * (p - q)).sum(-1).mean()))
