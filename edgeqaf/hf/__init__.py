"""Our place in the Hugging Face libraries: transformers loads our model folders, peft puts LoRA on our layers.

Both keep registries that a process must fill after they were imported, and neither may be imported for
it: `announce` only asks Python to import one of the modules below right after the one it adds to.

quantizer.py   the quantizer that `from_pretrained` finds by ``quant_method`` in config.json
lora.py        peft's LoRA layer over a `QLinear`, and what peft says of an adapter that is not LoRA
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importlib.abc alone would take longer to import than all of this package
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec

FOLLOWERS = {"transformers.quantizers.auto": "edgeqaf.hf.quantizer", "peft.tuners.lora.model": "edgeqaf.hf.lora"}
PEFT_TYPE = "EDGEQAF"  # in adapter_config.json, of an adapter that is no LoRA


def announce() -> None:
    """Have each follower imported after its module, at once where that module is loaded already."""
    for name, follower in FOLLOWERS.items():
        if name in sys.modules:
            import_module(follower)
    if not any(isinstance(finder, _Follow) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Follow())


class _Follow:
    """Finds what the other finders find, and adds to the loader of a followed module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> "ModuleSpec | None":
        if fullname not in FOLLOWERS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (spec for finder in others if (spec := finder.find_spec(fullname, path, target)))
        spec = next(found, None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader)  # type: ignore[assignment]
        return spec


class _Then:
    """A module's own loader, and after it the follower. The module keeps no trace of this."""

    def __init__(self, own: "Loader") -> None:
        self.own = own

    def create_module(self, spec: "ModuleSpec") -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.own
        if module.__spec__ is not None:
            module.__spec__.loader = self.own
        self.own.exec_module(module)
        import_module(FOLLOWERS[module.__name__])
