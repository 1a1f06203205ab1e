"""llama.cpp's own quantizer: whole models, in any of its file types, with scales of two levels (``--type Q4_K_M``).

It makes a GGUF file, which is then imported (`edgeqaf.imported.quantize_by_llama_cpp`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from edgeqaf.checkpoint import QModel
from edgeqaf.errors import UsageError
from edgeqaf.protocols import RuntimeOptions
from edgeqaf.quantize import Plan
from edgeqaf.quantizer import Quantizer


class LlamaCpp(Quantizer):
    """type: one of llama.cpp's file types; llama_lib: a folder with libllama; the rest: `quantize_by_llama_cpp`."""

    takes: ClassVar[frozenset[str]] = frozenset({"type", "pure", "imatrix", "llama_lib"})

    def plan(self, folder: Path, options: Mapping[str, Any]) -> Plan:
        raise UsageError("llama.cpp chooses each tensor's type as it goes", "leave out --dry-run")

    def base(self, folder: Path, out: Path, options: Mapping[str, Any], *, force: bool = False) -> QModel:
        from edgeqaf.imported import quantize_by_llama_cpp

        if "type" not in options:
            raise UsageError(
                "llama.cpp's quantizer takes --type, and none is given", "name one of its file types: --type Q4_K_M"
            )
        return quantize_by_llama_cpp(
            folder, out, options["type"], RuntimeOptions(options.get("llama_lib"), threads=0),
            pure=options.get("pure", False), imatrix=options.get("imatrix"), force=force,
        )  # fmt: skip


quantizer = LlamaCpp()
