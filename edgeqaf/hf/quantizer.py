"""The quantizer by which ``AutoModelForCausalLM.from_pretrained("merged")`` loads our folders.

transformers builds the architecture without weights, asks us to replace its linears, loads the float
tensors, and asks again. Our tensors go round its loader, which knows one value a parameter: they are
read, checked against their digests and packed before it starts, and take their places after it. No
float weight of a quantized layer ever exists. Imported by `edgeqaf.hf`, never at ``import edgeqaf``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from edgeqaf import checkpoint, parts
from edgeqaf.companions import QUANT_METHOD
from edgeqaf.digest import Tensor
from edgeqaf.errors import Refused
from edgeqaf.packed import Packed
from edgeqaf.qtensor import QTensor
from edgeqaf.source import EMBEDDING, HEAD, is_linear

PARTS = ("codes", "scale", "zero")


@register_quantization_config(QUANT_METHOD)
class GridConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """``quantization_config`` of config.json. It only names us: the grids are in edgeqaf.json."""

    def __init__(self, quant_method: str = QUANT_METHOD, **unknown: Any) -> None:
        if unknown:
            raise Refused(
                f"config.json: quantization_config has {', '.join(sorted(unknown))}",
                "it was edited, or written by a newer version; make the folder again",
            )
        self.quant_method = quant_method


@register_quantizer(QUANT_METHOD)
class GridQuantizer(HfQuantizer):  # type: ignore[misc]
    """See the module's docstring. Raises Refused for a folder that is not what its manifest says."""

    def __init__(self, quantization_config: GridConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        if not self.pre_quantized:
            raise Refused(
                "from_pretrained cannot put a float model on a grid",
                "edgeqaf quantize MODEL -o base, then from_pretrained('base')",
            )
        self._folder = Path()
        self._waiting: dict[str, Packed] = {}

    def update_attn_implementation(self, config: Any) -> Any:
        """The one look at the config before its dtype counts: where the caller names none, it is float32.

        The source's own dtype (bfloat16, mostly) would round activations otherwise than the training
        forward and every proof of ours did.
        """
        config.dtype = torch.float32
        return config

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        self._folder = _folder(checkpoint_files)
        stored = checkpoint.load(self._folder)
        wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        tied = set(model.all_tied_weights_keys)
        _require_names(stored.tensors.keys(), wanted.keys(), tied, model)
        for name, tensor in checkpoint.verified(stored):
            _require_shape(name, tensor, wanted[name])
            if isinstance(tensor, QTensor):
                self._replace(model, name, tensor)
                if name == EMBEDDING and HEAD not in stored.tensors:  # the head reads the same integers
                    self._replace(model, HEAD, tensor)
                    model.all_tied_weights_keys = {}
        ours = {rf"\.weight\.{part}$" for part in parts.NAMES}
        model._keys_to_ignore_on_load_unexpected = ours | set(model._keys_to_ignore_on_load_unexpected or ())

    def _replace(self, model: nn.Module, name: str, tensor: QTensor) -> None:
        """Our module without data in the model, where transformers finds out which device it belongs on."""
        from edgeqaf.ends import place

        path = name.removesuffix(".weight")
        former: Any = model.get_submodule(path)
        config: Any = model.config
        linear, bias = is_linear(config.model_type, name), getattr(former, "bias", None)
        module = place(model, name, tensor, linear=linear, bias=bias)
        self._waiting[path] = module.base  # type: ignore[assignment]
        module.to("meta")

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for path, base in self._waiting.items():
            layer = model.get_submodule(path)
            for part in PARTS:
                if (values := getattr(base, part)) is not None:
                    setattr(layer, part, values.to(getattr(layer, part).device))
        self._waiting.clear()
        return model

    def is_serializable(self) -> bool:
        """Never: save_pretrained knows nothing of manifests."""
        logging.get_logger("transformers").warning(
            f"save_pretrained cannot write a folder of edgeqaf; copy {self._folder}, "
            "or make another with edgeqaf quantize or edgeqaf merge"
        )
        return False

    @property
    def is_trainable(self) -> bool:
        """Gradients pass through; what may be trained is an adapter beside the integers."""
        return True


def _folder(files: Sequence[str] | None) -> Path:
    if not files or len(files) != 1 or Path(files[0]).name != checkpoint.WEIGHTS:
        raise Refused(
            f"weights from {', '.join(map(str, files or ['memory']))}",
            f"edgeqaf reads folders with one {checkpoint.WEIGHTS}, written by quantize or merge",
        )
    folder = Path(files[0]).parent
    if not (folder / checkpoint.MANIFEST).is_file():
        raise Refused(
            f"{folder} has no {checkpoint.MANIFEST} beside {checkpoint.WEIGHTS}",
            "fetch the whole repository first: huggingface_hub.snapshot_download(NAME)",
        )
    return folder


def _require_names(stored: Any, wanted: Any, tied: set[str], model: Any) -> None:
    """Nothing of the file may be left over, nothing of the model may be left to chance."""
    for name in sorted((stored - wanted) | (wanted - stored - tied)):
        where = ("is stored", "has no place in it") if name in stored else ("is not stored", "needs it")
        raise Refused(
            f"{name} {where[0]}, and {type(model).__name__} {where[1]}",
            "load the folder with AutoModelForCausalLM; if that was it, config.json is of another model",
        )


def _require_shape(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != wanted:
        raise Refused(
            f"{name} has shape {list(tensor.shape)}, config.json implies {list(wanted)}",
            "config.json and the tensors must belong to one model",
        )
