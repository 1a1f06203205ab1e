"""Reading a float model in the Hugging Face layout: config.json and safetensors, one file or shards.

Names are made canonical here, once: a tied head exists only as ``model.embed_tokens.weight``,
however the checkpoint stored it. Pickles are never loaded and remote code is never run.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from edgeqaf.jsonfile import read_json

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# model_type -> which tensors are linear weights of the decoder layers, to be quantized
LINEARS = {
    "llama": re.compile(r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"),
}
FLOATS = ("F64", "F32", "F16", "BF16")


class FloatModel(Mapping[str, Floats]):
    """The float32 tensors of a Hugging Face folder, read one at a time, by canonical name.

    Raises Refused for a folder that is not one, an unsupported architecture, a corrupt or truncated
    file, a missing shard, a tensor that is not float.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise Refused(
                f"{folder} is not a folder",
                "pass a model folder in the Hugging Face layout (config.json, *.safetensors)",
            )
        self.config: dict[str, Any] = read_json(folder / "config.json")
        self.architecture = str(self.config.get("model_type"))
        if self.architecture not in LINEARS:
            raise Refused(
                f"{folder / 'config.json'}: architecture {self.architecture!r} is not supported",
                f"supported: {', '.join(sorted(LINEARS))}",
            )
        self._files = dict(self._stored())
        self._make_head_canonical()

    def is_linear(self, name: str) -> bool:
        """Whether ``name`` is a linear weight of a decoder layer."""
        return LINEARS[self.architecture].fullmatch(name) is not None

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._files[name]
        return tuple(file.get_slice(stored).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._files))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, name: str) -> Floats:
        file, stored = self._files[name]
        values = np.asarray(file.get_tensor(stored)).astype(np.float32)
        if not np.isfinite(values).all():
            index = tuple(int(i[0]) for i in np.nonzero(~np.isfinite(values)))
            raise Refused(f"{name}{list(index)} is {values[index]}", "the checkpoint is damaged; fetch it again")
        return values

    def _stored(self) -> Iterator[tuple[str, tuple[Any, str]]]:
        for path in self._paths():
            try:
                file = safe_open(path, framework="numpy")
                for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                    if name.endswith(".rotary_emb.inv_freq"):
                        continue  # old checkpoints carry this table; it follows from the config
                    dtype = file.get_slice(name).get_dtype()
                    if dtype not in FLOATS:
                        raise Refused(
                            f"{path}: {name} is {dtype}, not a float type",
                            "pass the float checkpoint, not a quantized one",
                        )
                    yield name, (file, name)
            except (OSError, SafetensorError) as error:
                raise Refused(f"{path}: {error}", "the file is missing, truncated or corrupt; fetch it again") from None

    def _paths(self) -> list[Path]:
        index = self.folder / "model.safetensors.index.json"
        if not index.is_file():
            return [self.folder / "model.safetensors"]
        shards = sorted(set(read_json(index)["weight_map"].values()))
        for shard in shards:
            if Path(shard).name != shard:
                raise Refused(
                    f"{index}: shard {shard!r} is outside the folder", "the index is malformed; fetch it again"
                )
        return [self.folder / shard for shard in shards]

    def _make_head_canonical(self) -> None:
        tied = self.config.get("tie_word_embeddings", False)
        if EMBEDDING not in self._files and HEAD in self._files and tied:
            self._files[EMBEDDING] = self._files.pop(HEAD)
        if tied and HEAD in self._files:
            if not np.array_equal(self[HEAD], self[EMBEDDING]):
                raise Refused(
                    f"{HEAD} and {EMBEDDING} differ though config.json ties them",
                    "fix tie_word_embeddings in config.json",
                )
            del self._files[HEAD]
        missing = [n for n in (EMBEDDING, "model.norm.weight", *([] if tied else [HEAD])) if n not in self._files]
        if missing:
            raise Refused(
                f"{self.folder}: no tensor {', '.join(missing)}", "the checkpoint is incomplete; fetch it again"
            )
