"""Writing one tensor into a GGUF file, by runs of rows."""

from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgeqaf import plugins
from edgeqaf.digest import FLOAT32
from edgeqaf.errors import Refused
from edgeqaf.parts import dtypes
from edgeqaf.runs import Rows, ahead, cuts
from exporters.gguf.blocks import pack
from exporters.gguf.container import TensorInfo
from exporters.gguf.floats import narrow
from exporters.gguf.places import Place

AGAIN = "make the model folder again"


def write_tensor(file: BinaryIO, rows: Rows, place: Place, info: TensorInfo, grid_name: str) -> None:
    """Write the tensor that ``rows`` gives, on that grid or "float32", in the file's order of rows and type.

    Raises Refused where it takes other bytes than planned.
    """
    grid: Any = None if grid_name == FLOAT32 else plugins.find("grids", grid_name)

    expected = dtypes(grid).keys() if grid else set()

    def in_file_form(start: int, stop: int) -> NDArray[Any]:
        run = place.some(stop - start).to_file(rows(start, stop))
        found = run.keys() if isinstance(run, Mapping) else set()
        if found != expected:
            raise Refused(f"{place.logical} is not {grid_name}, as its model's manifest says", AGAIN)
        return pack(grid, run) if isinstance(run, Mapping) else narrow(run, info.type, place.logical)

    size = 0
    for run in ahead(in_file_form, cuts(info.shape, place.unit)):
        size += file.write(np.ascontiguousarray(run).reshape(-1).view(np.uint8).data)
    if size != info.size:
        raise Refused(f"{info.name} takes {size} bytes, {info.size} by its model's manifest", AGAIN)
