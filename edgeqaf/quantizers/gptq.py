"""GPTQ: every matrix so rounded that the layer's output on a calibration text changes least (`edgeqaf.gptq`).

It goes through the model layer by layer (`edgeqaf.calibration`), each layer given what the quantized ones before it
make of the text. All Hessians of a layer come from its float weights, as in the paper's code. Finished layers are kept
beside the output, and a run that was killed goes on after them (`edgeqaf.halfway`).

An embedding is looked up, not multiplied, so it has no Hessian: where the ends are quantized, rtn does both, and the
first layer is given what the quantized embedding makes of the text.

The same inputs give the same bytes on the same machine with the same number of threads: sums of activations are BLAS's.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeqaf import __version__, plugins
from edgeqaf.console import progress, say
from edgeqaf.digest import Tensor, file_sha256
from edgeqaf.errors import Refused, UsageError
from edgeqaf.qtensor import decode
from edgeqaf.quantize import Plan
from edgeqaf.quantizer import AsAsked, EachMatrix, Job, OntoGrid
from edgeqaf.runs import rows_of

if TYPE_CHECKING:
    from edgeqaf.calibration import Calibration

TOKENS, DAMPING = 32768, 0.01  # the paper's damping


class Gptq(OntoGrid):
    """calib: a text, or any data that training takes. calib_tokens: of it, the first so many.

    damping: added to the diagonal of every Hessian, as a share of its mean.
    """

    takes: ClassVar[frozenset[str]] = OntoGrid.takes | {"calib", "calib_tokens", "damping"}

    def plan(self, folder: Path, options: Mapping[str, Any]) -> Plan:
        if "calib" not in options:
            raise UsageError(
                "GPTQ needs a calibration text, and none is given",
                "name a text like those the model will read: --calib",
            )
        damping = options.get("damping", DAMPING)
        if not 0 < damping < float("inf"):
            raise UsageError(f"--damping {damping} is no positive number", f"the paper's is {DAMPING}")
        return super().plan(folder, options)

    def record(self, options: Mapping[str, Any]) -> dict[str, Any]:
        from edgeqaf.data.reading import digest, read_rows

        text = options["calib"]
        tokens, damping = options.get("calib_tokens", TOKENS), options.get("damping", DAMPING)
        return {"calib": digest(text, read_rows(text)), "calib_tokens": tokens, "damping": damping}

    @contextmanager
    def tensors(self, job: Job) -> Iterator[Mapping[str, Tensor]]:
        from edgeqaf.calibration import Calibration, sequences
        from edgeqaf.halfway import Halfway

        ids = sequences(job.options["calib"], job.source.folder, job.options.get("calib_tokens", TOKENS))
        halfway = Halfway(job.out, _made_of(job, ids.numpy().tobytes()), job.grid.name)
        rtn: EachMatrix = plugins.find("quantizers", "rtn")
        before = AsAsked(replace(job, grids=job.ends), partial(rtn.rows, job))
        calibration = Calibration(job.source.config, before, ids)
        layers = _linears(job, len(calibration))
        finished = [halfway.layer(i, names) for i, names in enumerate(layers)]
        already = sum(one is not None for one in finished)
        if already:
            say(f"{already} of {len(layers)} layers were finished before")
        with progress(f"gptq {job.grid.name}", len(layers)) as advance:
            for i, names in enumerate(layers):
                stored = finished[i]
                if stored is None:
                    halfway.finish(i, _quantized(calibration, i, names, job))
                    finished[i] = stored = halfway.layer(i, names)
                assert stored is not None
                calibration.through(i, {name: decode(stored[name]) for name in names})  # type: ignore[arg-type]
                advance(i + 1, f"layer {i}")
        layer_of = {name: stored for names, stored in zip(layers, finished, strict=True) if stored for name in names}
        yield AsAsked(job, lambda name: rtn.rows(job, name) if name in job.ends else rows_of(layer_of[name], name))
        halfway.clear()


def _made_of(job: Job, tokens: bytes) -> dict[str, Any]:
    """All that decides the bits."""
    import torch

    files = [job.source.folder / "config.json", *sorted(job.source.folder.glob("*.safetensors"))]
    return {
        "edgeqaf": __version__, "torch": torch.__version__, "threads": torch.get_num_threads(), "grid": job.grid.name,
        "ends": {name: grid.name for name, grid in job.ends.items()},
        "damping": job.options.get("damping", DAMPING), "tokens": hashlib.sha256(tokens).hexdigest(),
        "files": {path.name: file_sha256(path) for path in files},
    }  # fmt: skip


def _linears(job: Job, layers: int) -> list[list[str]]:
    """The names of each layer's tensors that go onto the grid."""
    found: list[list[str]] = [[] for _ in range(layers)]
    for name in job.source:
        if name in job.grids and name not in job.ends:
            found[int(name.split(".")[2])].append(name)
    return found


def _quantized(calibration: "Calibration", index: int, names: Sequence[str], job: Job) -> dict[str, Tensor]:
    from edgeqaf import gptq

    made: dict[str, Tensor] = {}
    for sharers, hessian in calibration.hessians(index, names):
        try:
            upper = gptq.inverse_factor(hessian, job.options.get("damping", DAMPING))
            made |= {name: gptq.quantize(job.source[name], job.grid, upper) for name in sharers}
        except Refused as error:
            raise Refused(f"{sharers[0]}: {error.cause}", error.remedy) from None
    return made


quantizer = Gptq("gptq")
