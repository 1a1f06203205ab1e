"""Writing one tensor into a GGUF file, by runs of rows."""

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgeqaf.errors import Refused
from edgeqaf.qtensor import QTensor
from edgeqaf.runs import Rows, ahead, cuts
from exporters.gguf.blocks import pack
from exporters.gguf.container import TensorInfo
from exporters.gguf.floats import narrow
from exporters.gguf.places import Place


def write_tensor(file: BinaryIO, rows: Rows, place: Place, info: TensorInfo) -> None:
    """Write the tensor that ``rows`` gives, in the file's order of rows and type; Refused where it is another one."""

    def in_file_form(start: int, stop: int) -> NDArray[Any]:
        run = place.some(stop - start).to_file(rows(start, stop))
        return pack(run) if isinstance(run, QTensor) else narrow(run, info.type, place.logical)

    size = 0
    for run in ahead(in_file_form, cuts(info.shape, place.unit)):
        size += file.write(np.ascontiguousarray(run).reshape(-1).view(np.uint8).data)
    if size != info.size:
        raise Refused(
            f"{info.name} takes {size} bytes, {info.size} by its model's manifest", "make the model folder again"
        )
