"""What a GGUF file says beside its model's tensors: metadata by key, and tensors that follow from the config."""

import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from edgeqaf.statements import Statements
from edgeqaf.untrusted import Seen
from exporters.gguf import families
from exporters.gguf.artifact import SIZES, StoredTensors, digests_of, open_known
from exporters.gguf.container import SEAL, Value, plain_header, seal
from exporters.gguf.numbers import Metadata
from exporters.gguf.planned import Planned
from exporters.gguf.reader import Contents, parse_header
from exporters.gguf.split import KEYS


def stated(path: Path) -> Statements:
    """By a file, or the first of several."""
    stored = StoredTensors(path)
    factors = {n: stored.files.raw(n).tobytes() for n in stored.files.tensors if n in stored.family.factor_names}
    return _digests(stored.files.metadata, factors)


def restated(planned: Planned, path: Path) -> Statements:
    """By files that are not written yet. path: what errors call them."""
    factors: dict[str, bytes] = {}
    metadata: Metadata = {}
    for i, part in enumerate(planned.parts):
        seen = Seen(path, part.size, ())
        contents = parse_header(BytesIO(part.header), seen, SIZES)
        metadata = metadata if i else contents.metadata
        for name in families.of_file(metadata).factor_names:
            if name in contents.tensors:
                planned.put(file := BytesIO(), contents.tensors[name])
                factors[name] = file.getvalue()
    return _digests(metadata, factors)


def forge(path: Path, change: Callable[[dict[str, Value]], object]) -> None:
    """Let ``change`` alter the metadata of a file, or of the first of several, and seal its header anew if it was."""
    contents: Contents = open_known(path).parts[0]
    data = path.read_bytes()[contents.start :]
    metadata = dict(contents.metadata)
    sealed = metadata.pop(SEAL, None) is not None
    change(metadata)
    path.write_bytes(
        (seal if sealed else plain_header)(metadata, [*contents.tensors.values()], contents.alignment) + data
    )


def _digests(metadata: Metadata, factors: dict[str, bytes]) -> Statements:
    """Without what says over how many files a model is split."""
    said = digests_of({key: value for key, value in metadata.items() if key not in KEYS})
    return said | {name: hashlib.sha256(value).hexdigest() for name, value in factors.items()}
