"""Experiment trackers, by transformers' own callbacks: none unless asked for by name."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgeqaf.errors import RuntimeAbsent, UsageError


def require_trackers(names: Sequence[str]) -> None:
    """Refuse, before any work, trackers that transformers does not know, or whose package is not installed."""
    if not names:
        return
    from transformers.integrations import integration_utils

    known = sorted(integration_utils.INTEGRATION_TO_CALLBACK)
    available = integration_utils.get_available_reporting_integrations()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"unknown tracker {name!r}", f"{hint}known: none, {', '.join(known)}")
        if name not in available:
            raise RuntimeAbsent(f"the tracker {name} is not installed", f"pip install {name.replace('_', '-')}")


def write_into(out: Path, callbacks: Iterable[Any]) -> None:
    """Let TensorBoard write into the run folder ``out``, unless TENSORBOARD_LOGGING_DIR names another."""
    for callback in callbacks:
        if type(callback).__name__ == "TensorBoardCallback" and callback.logging_dir is None:
            callback.logging_dir = str(out / "tensorboard")
