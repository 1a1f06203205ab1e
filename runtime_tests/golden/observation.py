"""What is remembered of one climb: products of every matrix with ordinary activations, logits, token ids.

The probes of R2 are chosen so that every kernel must give one answer. These activations are chosen the other way:
their sums round in every step, so their bits tell one order of sums from another.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeqaf import plugins
from edgeqaf.digest import Floats, file_sha256
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Artifact, Runtime, Session
from runtime_tests.golden.file import Entry, Key
from runtime_tests.golden.isa import machine
from runtime_tests.job import Job
from runtime_tests.probes import FEWEST

ANY = "any"
BATCHES = {f"{FEWEST} rows": FEWEST, "1 row": 1}  # a prompt's kernels, and those that continue it token by token
WEIGHTS = (".data", ".safetensors")  # files of tensors, which have digests of their own
SEAL = "edgeqaf.sha256"  # an ONNX file's metadata: its digest, and so that of its maker's version too


def observe(job: Job, session: Session, logits: Sequence[Floats]) -> Entry:
    """The entry of a job. logits: of each of its prompts, as they came out in R4."""
    runtime: Runtime = plugins.find("runtimes", job.runtime)
    available = runtime.availability(job.options)
    key = Key(
        runtime=job.runtime, configuration=job.configuration.name, artifact=runtime.reads or ANY,
        build=available.version or "", isa=available.isa or machine(), threads=str(job.options.threads),
        prompts=_short(json.dumps(["edgeqaf golden 1", list(BATCHES.values()), list(job.texts)]).encode()),
    )  # fmt: skip
    return Entry(
        key=key,
        stated=_stated(job.artifact, runtime),
        asked=tuple(_ids(ids) for ids in job.tokens),
        tokens=tuple(_ids(session.encode(text)) for text in job.texts),
        layers=_layers(job, session),
        logits=tuple(tuple(_digest(row) for row in sequence) for sequence in logits),
    )


def activations(rows: int, inputs: int) -> Floats:
    """float32 [rows, inputs] in [-1, 1), of 24 bits: the same under every numpy, whose raw bits alone are promised."""
    raw: NDArray[np.uint64] = np.random.PCG64(inputs).random_raw(rows * inputs)
    return ((raw >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)).reshape(rows, inputs)


def _layers(job: Job, session: Session) -> dict[str, dict[str, str]]:
    """Of each batch the digest of every product; a tensor without a layout in this configuration is left out."""
    found: dict[str, dict[str, str]] = {title: {} for title in BATCHES}
    for name, stored, q in job.artifact.quantized():
        x = activations(max(BATCHES.values()), q.shape[1])
        for title, rows in BATCHES.items():
            try:
                found[title][name] = _digest(session.linear(stored, x[:rows]))
            except RuntimeAbsent:
                break
    return found


def _stated(artifact: Artifact, runtime: Runtime) -> dict[str, str]:
    """What a runtime reads beside the tensors: program, config, tokenizer."""
    if runtime.reads and artifact.metadata:
        return {key: digest[:16] for key, digest in artifact.metadata.items()}
    folder = artifact.path if runtime.reads and artifact.path.is_dir() else artifact.reference
    return dict(_files(folder))


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".onnx":
            yield path.name, _short(_program(path))
        elif path.is_file() and path.suffix not in WEIGHTS:
            yield path.name, file_sha256(path)[:16]


def _program(path: Path) -> bytes:
    """An ONNX file without its maker's version."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    kept = [entry for entry in model.metadata_props if entry.key != SEAL]
    model.ClearField("producer_version")
    model.ClearField("metadata_props")
    model.metadata_props.extend(kept)
    program: bytes = model.SerializeToString(deterministic=True)
    return program


def _ids(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


def _digest(values: Floats) -> str:
    """Of shape and bits; minus zero counts as zero, as in `edgeqaf.report.compare_bits`."""
    positive = np.ascontiguousarray(np.asarray(values, np.float32) + np.float32(0), "<f4")
    return _short(str(positive.shape).encode() + b"\0" + positive.tobytes())


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
