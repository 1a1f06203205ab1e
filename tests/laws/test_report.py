"""Comparing bits: what differs is found, counted and named; what is absent never passes."""

import numpy as np
import pytest

from edgeqaf.report import Check, Verdict, VerificationReport, compare_bits, first_difference


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_every_differing_bit_is_seen():
    value = floats(1.5, -3.0, 1e-40)
    for place in range(3):
        for bit in range(32):
            pattern = value.copy().view(np.uint32)
            pattern[place] ^= np.uint32(1 << bit)
            different = compare_bits(value, pattern.view(np.float32))
            assert different.tolist() == [i == place for i in range(3)]


def test_minus_zero_is_zero_and_nan_is_nothing():
    assert not compare_bits(floats(0.0, -0.0), floats(-0.0, 0.0)).any()
    assert compare_bits(floats(np.nan, 1), floats(np.nan, 1)).tolist() == [True, False]
    assert not compare_bits(floats(np.inf, -np.inf), floats(np.inf, -np.inf)).any()
    assert compare_bits(floats(0.0), floats(1e-45)).all()


@pytest.mark.parametrize("shape", [(), (2,), (3, 2), (2, 3, 1), (0,)], ids=str)
def test_another_shape_is_different_whatever_it_holds(shape):
    expected = np.zeros((2, 3), np.float32)
    found = np.zeros(shape, np.float32)
    assert compare_bits(expected, found).all()
    difference = first_difference("w", expected, found, compare_bits(expected, found))
    assert str(difference) == f"w: expected shape (2, 3), found shape {shape}"


def test_the_first_difference_is_named_with_index_and_bits():
    expected, found = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
    assert first_difference("w", expected, found, compare_bits(expected, found)) is None
    found[1, 0], found[1, 2] = 1.5, 7
    difference = first_difference("w", expected, found, compare_bits(expected, found))
    assert str(difference) == "w[1, 0]: expected 0.0 (0x00000000), found 1.5 (0x3fc00000)"


def test_a_report_fails_on_different_and_refused_and_only_there():
    for verdict in Verdict:
        report = VerificationReport((Check("R1", "torch", Verdict.EXACT), Check("R1", "other", verdict)))
        failed = verdict in (Verdict.DIFFERENT, Verdict.REFUSED)
        assert report.as_json()["passed"] is not failed
        assert len(report.failures) == failed
        assert len(report.absent) == (verdict is Verdict.ABSENT)
        assert [c["verdict"] for c in report.as_json()["checks"]] == ["exact", verdict.value]


def test_a_report_in_which_nothing_was_checked_has_not_passed():
    assert VerificationReport().as_json()["passed"] is False
    assert VerificationReport((Check("R1", "torch", Verdict.ABSENT),)).as_json()["passed"] is False
