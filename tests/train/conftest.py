"""The tiny base, opened."""

from pathlib import Path

import pytest

from edgeqaf import checkpoint
from edgeqaf.checkpoint import QModel


@pytest.fixture(scope="session")
def tiny_model(tiny_base: Path) -> QModel:
    return checkpoint.load(tiny_base)
