"""The arrays of a Hugging Face folder by stored name: one safetensors file, or shards and their index."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from edgeqaf.errors import Refused
from edgeqaf.jsonfile import read_json
from edgeqaf.tensorfile import Array, TensorFile

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Shards(Mapping[str, Array]):
    """Every array of the folder, read when it is asked for.

    Raises Refused for a file that is missing or malformed, and for shards that are not what the index says.
    """

    def __init__(self, folder: Path) -> None:
        weight_map = _weight_map(folder)
        self._files: dict[str, TensorFile] = {}
        for shard in sorted(set(weight_map.values())) or [WHOLE]:
            file = TensorFile(folder / shard)
            for name in sorted({*file, *weight_map}):
                if (name in file) != (weight_map.get(name, shard) == shard):
                    raise Refused(
                        f"{file.path}: {name} is {'' if name in file else 'not '}there, contrary to the index",
                        "shards of two checkpoints are mixed; fetch it again",
                    )
            self._files |= dict.fromkeys(file, file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files  # the mixin's would read the array

    def __getitem__(self, name: str) -> Array:
        return self._files[name][name]

    def rows(self, name: str, start: int, stop: int) -> Array:
        """`edgeqaf.tensorfile.TensorFile.rows`."""
        return self._files[name].rows(name, start, stop)

    def dtype(self, name: str) -> str:
        """The type of an array, as safetensors calls it."""
        return self._files[name].dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, which is not read for it."""
        return self._files[name].shape(name)

    def path(self, name: str) -> Path:
        """The file that holds an array."""
        return self._files[name].path


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> file, as the index of a sharded checkpoint says; empty for one file."""
    index = folder / INDEX
    if not index.is_file():
        return {}
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise Refused(f"{index} has no weight_map", "the index is malformed; fetch it again")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".."):
            raise Refused(
                f"{index}: shard {shard!r} is no file of the folder", "the index is malformed; fetch it again"
            )
    return weight_map
