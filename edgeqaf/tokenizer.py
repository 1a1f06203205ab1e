"""Text to token ids and back, by the ``tokenizer.json`` of a model folder, or its ``tokenizer.model``."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend

from edgeqaf import spm
from edgeqaf.errors import Refused
from edgeqaf.jsonfile import read_json


class Tokenizer:
    """eos: the ids that end a generation. pad: an id to fill batches with (never attended to)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._backend = backend(folder)
        self.eos = _end_tokens(folder)
        self.pad = self.eos[0]

    def encode(self, text: str, *, prompt: bool) -> list[int]:
        """Ids of ``text``; a prompt gets the special tokens the model starts with, but no end token."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=prompt).ids
        while prompt and len(ids) > 1 and ids[-1] in self.eos:
            ids = ids[:-1]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` without special tokens."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def text(self, i: int) -> str | None:
        """A token as the vocabulary writes it; None for an id without one."""
        found: str | None = self._backend.id_to_token(i)
        return found

    def id(self, text: str) -> int | None:
        """The id of a token as the vocabulary writes it, or None."""
        found: int | None = self._backend.token_to_id(text)
        return found

    def chat_template(self) -> str | None:
        """The model's chat template, or None."""
        if (self.folder / "chat_template.jinja").is_file():
            return (self.folder / "chat_template.jinja").read_text("utf-8")
        if not (self.folder / "tokenizer_config.json").is_file():
            return None
        template = read_json(self.folder / "tokenizer_config.json").get("chat_template")
        return template if isinstance(template, str) else None


def backend(folder: Path) -> Backend:
    """The folder's tokenizer, which neither pads nor truncates; Refused where there is none or it is corrupt."""
    if (folder / "tokenizer.json").is_file():
        try:
            found = Backend.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise Refused(f"{folder / 'tokenizer.json'}: {error}", "the file is corrupt; fetch it again") from None
    elif (folder / "tokenizer.model").is_file():
        found = spm.backend(folder)
    else:
        raise Refused(f"{folder} has no tokenizer.json", "copy the model's tokenizer files into the folder")
    found.no_padding()
    found.no_truncation()
    return found


def _end_tokens(folder: Path) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            eos = read_json(folder / name).get("eos_token_id")
            if eos is not None:
                return tuple(eos) if isinstance(eos, list) else (int(eos),)
    raise Refused(f"{folder}: no eos_token_id in generation_config.json or config.json", "add the id of the end token")
