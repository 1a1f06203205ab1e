"""Hugging Face checkpoints that another tool quantized: their integers, zeros and scales, as they are, on our grids.

Such a layer stands for ``(code - zero) * scale``, with a scale and a zero for every ``group`` of inputs. That is
q4_0 where every zero is the middle code 8 (q8_0 in 8 bits), else uint4. A group of 64, 128 or a whole row is as many
blocks of 32 that repeat its scale and zero. Nothing is rounded, and no quantizer runs.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.companions import CONFIG, QUANTIZATION, copy_companions
from edgeqaf.digest import Tensor
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid, Zero
from edgeqaf.importing import ANEW, Arrays, Importer, Layer
from edgeqaf.jsonfile import write_json
from edgeqaf.qtensor import QTensor, check, to_half
from edgeqaf.runs import Rows, rows_in
from edgeqaf.shards import Shards
from edgeqaf.source import HEAD, FloatModel, has_bias, read_config
from edgeqaf.tensorfile import Array

GRIDS = {(4, True): "q4_0", (4, False): "uint4", (8, True): "q8_0"}  # (bits, every zero is the middle) -> grid
WEIGHT = ".weight"


class Imported(Mapping[str, Tensor]):
    """The tensors of a quantized checkpoint by logical name: `QTensor` where it has integers, float32 elsewhere.

    Raises Refused, before any weight is read, for what cannot be taken over as it is.
    """

    def __init__(self, folder: Path) -> None:
        self.config = read_config(folder)
        importer: Importer = plugins.find("importers", method_of(folder))(self.config[QUANTIZATION])
        stored, (marker, *_) = Shards(folder), importer.parts
        names = sorted(name.removesuffix(f".{marker}") for name in stored if name.endswith(f".{marker}"))
        arrays = {f"{name}.{part}": f"{name}{WEIGHT}" for name in names for part in importer.parts}
        self._floats = FloatModel(folder, {array: tensor for array, tensor in arrays.items() if array in stored})
        self._layers = {f"{name}{WEIGHT}": importer.layer(Arrays(stored, name)) for name in names}
        for name in self._layers:
            if name in self._floats or not (self._floats.is_linear(name) or name == HEAD):
                what = "stored in float too" if name in self._floats else "no linear weight of a decoder layer"
                raise Refused(f"{name} is quantized, and {what}", "only linear weights can be, once each")
        self._grids = {name: grid_of(name, layer) for name, layer in self._layers.items()}
        self._idle = frozenset(name for name in self._floats if self._is_idle(name))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._layers, *self._floats} - self._idle))

    def __len__(self) -> int:
        return len(self._layers) + len(self._floats) - len(self._idle)

    def outline(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """`edgeqaf.checkpoint.QModel.outline`; of the quantized tensors only the zeros were read for it."""
        quantized = {name: (self._grids[name].name, layer.shape) for name, layer in self._layers.items()}
        whole = self._floats.outline() | quantized
        return {name: whole[name] for name in self}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._idle:
            raise KeyError(name)
        return put_on_grid(name, self._layers[name]) if name in self._layers else self._floats[name]

    def rows(self, name: str) -> Rows:
        """`edgeqaf.runs.ByRows`; what is quantized, is read as a whole."""
        return rows_in(self[name], name) if name in self._layers or name in self._idle else self._floats.rows(name)

    def _is_idle(self, name: str) -> bool:
        """Whether it is the bias of zeros that AutoGPTQ stores for layers that have none."""
        layer = name.removesuffix(".bias")
        if f"{layer}{WEIGHT}" not in self._layers or layer == name or has_bias(self.config, layer):
            return False
        if self._floats[name].any():
            raise Refused(
                f"{name} is not zero, and this {self.config['model_type']} model has no such bias",
                "config.json and the tensors must belong to one model",
            )
        return True


def is_quantized(folder: Path) -> bool:
    """Whether a folder's config.json says that another tool quantized it."""
    return (folder / CONFIG).is_file() and QUANTIZATION in read_config(folder)


def open_base(folder: Path, place: Path) -> QModel:
    """The model in a quantized checkpoint; tokenizer and config.json, which names no quantizer, go into ``place``."""
    tensors = Imported(folder)
    config = {key: value for key, value in tensors.config.items() if key != QUANTIZATION}
    copy_companions(folder, place)
    write_json(place / CONFIG, config)
    return QModel(config, tensors, place)


def method_of(folder: Path) -> str:
    """The quant_method of a checkpoint, as its importer's file is called; raises Refused for one without."""
    settings = read_config(folder).get(QUANTIZATION)
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    key, known = str(method).replace("-", "_"), plugins.names("importers")
    if key not in known:
        raise Refused(
            f"{folder / CONFIG} has a {QUANTIZATION} of quant_method {method!r}",
            f"pass a float checkpoint, or one of {', '.join(known)}; if its tensors are float, delete that key",
        )
    return key


def grid_of(name: str, layer: Layer) -> Grid:
    """The grid whose values the layer's are; raises Refused where there is none."""
    middle = 1 << (layer.bits - 1)
    key = GRIDS.get((layer.bits, bool((layer.zero == middle).all())))
    if key is None:
        row, column = map(int, np.argwhere(layer.zero != middle)[0])
        raise Refused(
            f"{name}: the zero of row {row}, group {column} is {layer.zero[row, column]}; "
            f"of {layer.bits} bits, only symmetric codes have a grid (every zero {middle})",
            "take a symmetric or 4-bit checkpoint, or " + ANEW,
        )
    grid: Grid = plugins.find("grids", key)
    inputs = layer.shape[1]
    if inputs % grid.block or (layer.group % grid.block and layer.group < inputs):
        raise Refused(
            f"{name}: rows of {inputs} in groups of {layer.group} are not made of {grid.name}'s blocks of {grid.block}",
            f"take a checkpoint whose groups are multiples of {grid.block}, or " + ANEW,
        )
    return grid


def put_on_grid(name: str, layer: Layer) -> QTensor:
    """The layer as a tensor of its grid, every group's scale and zero repeated for its blocks; raises Refused."""
    grid = grid_of(name, layer)
    group = np.arange(0, layer.shape[1], grid.block) // layer.group  # of each block

    def spread(values: Array) -> Array:
        return values.astype(np.float32)[:, group]

    stored = layer.scale()
    scale = stored.astype(np.float32)
    wrong = np.argwhere(~np.isfinite(scale) | (to_half(scale) != scale))
    if wrong.size:
        row, column = map(int, wrong[0])
        raise Refused(
            f"{name}: the scale of row {row}, group {column} is {scale[row, column]!s} ({stored.dtype}), "
            f"no finite float16 value, as are {len(wrong)} of {scale.size}",
            "grids keep float16 scales: take a checkpoint that has them, or " + ANEW,
        )
    free = grid.zero is Zero.CODE
    codes = layer.codes() if free else layer.codes() - np.uint8((1 << (layer.bits - 1)) - grid.centre)
    return check(QTensor(grid, codes.view(np.int8), spread(scale), spread(layer.zero) if free else None), name)
