"""A child process has limits, and what becomes of it is an error with a name."""

import os

import children
import pytest

from edgeqaf.child import Limits, stream
from edgeqaf.errors import OutOfResources, Refused


def test_more_memory_than_allowed_names_the_limit() -> None:
    with pytest.raises(OutOfResources, match=r"a greedy one: needs more than 1\.5 GB of memory"):
        list(stream("a greedy one", children.fill, 3, limits=Limits(memory=1.5)))
    assert list(stream("a modest one", children.fill, 0.5, limits=Limits(memory=1.5))) == [1]


def test_silence_ends_and_names_the_seconds() -> None:
    answers = stream("a silent one", children.sleep, 60, limits=Limits(seconds=10))
    assert next(answers) == "before"
    with pytest.raises(Refused, match="a silent one: no answer in 10 s") as told:
        next(answers)
    assert "--timeout" in told.value.remedy


def test_a_crash_names_its_signal() -> None:
    with pytest.raises(Refused, match=r"a broken one: the runtime's process died \(exit -6\)"):
        list(stream("a broken one", children.abort))


@pytest.mark.parametrize("memory", [None, 4.0])
def test_what_a_child_starts_has_its_limits(memory: float | None) -> None:
    """Without a number, those of the machine; and no core is ever written."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if memory is None else memory * 1e9
    assert list(stream("one", children.limits, limits=Limits(memory))) == [[most, 0], [most, 0]]
