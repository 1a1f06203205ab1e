"""llama.cpp's forward written again, for every family: to the bit from F32 files, or refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
from family_models import CASES

from edgeqaf import plugins
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Artifact, RuntimeOptions
from edgeqaf.report import compare_bits

EXPORTER, RUNTIME = plugins.find("exporters", "gguf"), plugins.find("runtimes", "llama_cpp")
available = RUNTIME.availability(RuntimeOptions())
pytestmark = pytest.mark.skipif(available.version is None, reason=available.reason)
UNWRITTEN = {  # by what is refused
    "the family gemma2": ("gemma 2 2B", "gemma 2 27B"),
    "the family gemma3": ("gemma 3 1B", "gemma 3 4B"),
    "the family phi3": ("phi 3.5 mini, long", "phi 3.5 mini, short", "phi 3 mini 4k", "phi 4 mini"),
    "rope scaling yarn": ("llama yarn", "qwen2.5 yarn", "qwen3 yarn"),
}
REASONS = {name: reason for reason, names in UNWRITTEN.items() for name in names}


@pytest.mark.parametrize("name", CASES)
def test_a_family_is_exact_or_refused_by_name(name: str, make: Callable[[str], Any]) -> None:
    """Nothing is rounded to 8 bits in these, so that a last bit shows in the logits."""
    made = make(name)
    artifact = Artifact("gguf", made.file, EXPORTER.read_back(made.file), made.model.folder)
    with RUNTIME.open(artifact, RUNTIME.configurations[0], RuntimeOptions()) as session:
        if name in REASONS:
            with pytest.raises(RuntimeAbsent, match=f"no reproduction of .*{REASONS[name]}"):
                next(session.reproduce(made.tokens, 2, {}))
            return
        found = [*session.reproduce(made.tokens, 2, {})]
    assert len(found) == 3
    for one in found:
        assert one.first is None
        assert not compare_bits(one.expected, one.found).any()
        assert one.compared > 10 * one.differing == 0
