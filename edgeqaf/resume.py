"""What a run leaves on disk to go on from: the trained parameters, and beside them the optimizer's state.

A checkpoint is a folder ``step-000100``, staged and renamed, so that it is whole or absent.
"""

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeqaf.errors import Refused
from edgeqaf.method import adapter_state
from edgeqaf.nn import qlinears
from edgeqaf.sharding import deal, is_sharded
from edgeqaf.tensorfile import NAMES, TensorFile

ADAPTER, STATE = "adapter_model.safetensors", "trainer_state.json"
OPTIMIZER, SCHEDULER, RANDOM = "optimizer.pt", "scheduler.pt", "random.pt"
Kind = tuple[str, tuple[int, ...]]  # type, as `edgeqaf.tensorfile` calls it, and shape


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def parameters(model: nn.Module, stored_name: Callable[[str], str] = str) -> dict[str, Tensor]:
    """What an adapter file holds, contiguous and on the CPU; of a sharded model, to be taken while it is assembled."""
    held = {stored_name(name): tensor.contiguous().cpu() for name, tensor in adapter_state(model).items()}
    return {name: tensor.clone() for name, tensor in held.items()} if is_sharded(model) else held


def load_parameters(model: nn.Module, file: Path, stored_name: Callable[[str], str] = str) -> None:
    """Fill what ``model`` trains from an adapter file with exactly those names."""
    stored = open_adapter(file)
    require_fit(stored, {stored_name(name): described(tensor) for name, tensor in adapter_state(model).items()})
    fill(model, stored, stored_name)


def open_adapter(file: Path) -> TensorFile:
    """An adapter file, its tensors to be read one at a time; Refused for one that is not whole."""
    try:
        return TensorFile(file)
    except Refused as error:
        raise Refused(error.cause, "the adapter is missing, truncated or corrupt; train it again") from None


def described(tensor: Tensor) -> Kind:
    """How an adapter file describes a tensor."""
    return NAMES[np.dtype(str(tensor.dtype).removeprefix("torch."))], tuple(tensor.shape)


def require_fit(stored: TensorFile, wanted: Mapping[str, Kind]) -> None:
    """Refuse a file that does not hold exactly the tensors ``wanted``."""
    found = {name: (stored.dtype(name), stored.shape(name)) for name in stored}
    wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if wrong:
        raise Refused(
            f"{stored.path}: {len(wrong)} tensors do not fit the model, first {wrong[0]}",
            "it belongs to another base or method",
        )


@torch.no_grad()
def fill(model: nn.Module, stored: TensorFile, stored_name: Callable[[str], str] = str) -> None:
    """Fill what ``model`` trains, which may be a part of what an adapter file holds."""
    for name, parameter in adapter_state(model).items():
        bits = torch.from_numpy(stored[stored_name(name)].reshape(-1).view(np.uint8))
        parameter.copy_(deal(bits.view(parameter.dtype).view(parameter.shape), parameter))
    for layer in qlinears(model).values():
        layer.changed()


def save_torch(value: Any, file: Path) -> None:
    """torch.save by way of memory: its own writer hides the system's error number, such as that of a full disk."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    file.write_bytes(buffer.getbuffer())


def load_torch(file: Path) -> Any:
    """The tensors and plain values of a file made by `save_torch`; Refused for anything else."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refused(
            f"{file}: {first}", "the checkpoint is damaged; remove its folder, and --resume goes on from the one before"
        ) from None


def random_state() -> dict[str, Any]:
    """Where torch's generators are, for models with dropout; nothing of ours draws from them."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state: dict[str, Any]) -> None:
    """Put torch's generators back there."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
