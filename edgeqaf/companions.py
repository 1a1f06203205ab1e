"""Config and tokenizer files: they travel with the weights, opaque to us, copied byte for byte."""

import shutil
from pathlib import Path

from edgeqaf.digest import file_sha256

# What a model folder carries beside its weights; each is opaque to us and copied as it is.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def copy_companions(source: Path, target: Path) -> None:
    """Copy config and tokenizer files that exist in ``source``."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def companions_digest(folder: Path) -> dict[str, str]:
    """SHA-256 of each companion file in ``folder``, by name."""
    present = [name for name in COMPANIONS if (folder / name).is_file()]
    return {name: file_sha256(folder / name) for name in present}
