"""llama.cpp's C interface as ctypes sees it: struct layouts, function types, and proof that they fit.

llama.cpp passes its parameter structs by value and changes them between releases (ggml 0.26 put
``moe_cache_size`` in the middle of one), and a wrong layout is not an error but a crash, or worse
a setting that lands in another field. So every struct here carries the defaults that the library
itself must report: a layout is used only if each of its fields reads as its known default, and a
library for which none does is refused. The ``tail`` keeps room for fields that a later release may
append: they arrive with their defaults and travel back unchanged.

Source of the layouts: ``include/llama.h``, ``ggml/include/{ggml,gguf,ggml-backend}.h`` and the
functions ``llama_model_default_params`` and ``llama_context_default_params`` of llama.cpp 0.5.0
(ggml 0.25.1) and 0.6.0-dev (ggml 0.26.0, b11549).
"""

from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int8,
    c_int32,
    c_int64,
    c_size_t,
    c_ubyte,
    c_uint32,
    c_void_p,
)
from typing import Any, ClassVar

TYPE_F32, TYPE_F16, TYPE_Q4_0, TYPE_I32 = 0, 1, 2, 26  # enum ggml_type
DEVICE_CPU = 0  # enum ggml_backend_dev_type
LOG_ERROR, LOG_CONTINUED = 4, 5  # enum ggml_log_level

Field = tuple[str, Any, Any]  # name, C type, the library's default

LogCallback = CFUNCTYPE(None, c_int, c_char_p, c_void_p)
ToFloat = CFUNCTYPE(None, c_void_p, c_void_p, c_int64)
SetThreads = CFUNCTYPE(None, c_void_p, c_int)
ExtraBufferTypes = CFUNCTYPE(POINTER(c_void_p), c_void_p)
TAIL = ("tail", c_ubyte * 256)


class ParamsStruct(Structure):
    """A parameter struct whose every field has a known default."""

    defaults: ClassVar[dict[str, Any]]

    def is_default(self) -> bool:
        """Whether each field reads as the library's documented default, i.e. the layout fits."""
        return all(getattr(self, name) == default for name, default in self.defaults.items())


def _params(name: str, fields: list[Field]) -> type[ParamsStruct]:
    layout = [(field, kind) for field, kind, _ in fields]
    defaults = {field: default for field, _, default in fields}
    return type(name, (ParamsStruct,), {"_fields_": [*layout, TAIL], "defaults": defaults})


ModelParams = _params(
    "ModelParams",
    [
        ("devices", c_void_p, None),
        ("tensor_buft_overrides", c_void_p, None),
        ("n_gpu_layers", c_int32, -1),
        ("split_mode", c_int, 1),
        ("load_mode", c_int, -1),
        ("lazy_mode", c_int, 1),
        ("main_gpu", c_int32, 0),
        ("tensor_split", c_void_p, None),
        ("progress_callback", c_void_p, None),
        ("progress_callback_user_data", c_void_p, None),
        ("kv_overrides", c_void_p, None),
        ("vocab_only", c_bool, False),
        ("check_tensors", c_bool, False),
        ("use_extra_bufts", c_bool, True),
        ("no_host", c_bool, False),
        ("no_alloc", c_bool, False),
        ("load_mtp", c_bool, False),
    ],
)

_CONTEXT_HEAD: list[Field] = [
    ("n_ctx", c_uint32, 512),
    ("n_batch", c_uint32, 2048),
    ("n_ubatch", c_uint32, 512),
    ("n_seq_max", c_uint32, 1),
    ("n_rs_seq", c_uint32, 0),
    ("n_outputs_max", c_uint32, 0),
    ("n_outputs_max_per_seq", c_uint32, 1),
    ("n_threads", c_int32, 4),
    ("n_threads_batch", c_int32, 4),
    ("ctx_type", c_int, 0),
    ("rope_scaling_type", c_int, -1),
    ("pooling_type", c_int, -1),
    ("attention_type", c_int, -1),
    ("flash_attn_type", c_int, -1),
    ("rope_freq_base", c_float, 0.0),
    ("rope_freq_scale", c_float, 0.0),
    ("yarn_ext_factor", c_float, -1.0),
    ("yarn_attn_factor", c_float, -1.0),
    ("yarn_beta_fast", c_float, -1.0),
    ("yarn_beta_slow", c_float, -1.0),
    ("yarn_orig_ctx", c_uint32, 0),
    ("defrag_thold", c_float, -1.0),
    ("cb_eval", c_void_p, None),
    ("cb_eval_user_data", c_void_p, None),
    ("type_k", c_int, TYPE_F16),
    ("type_v", c_int, TYPE_F16),
]
_CONTEXT_REST: list[Field] = [
    ("abort_callback", c_void_p, None),
    ("abort_callback_data", c_void_p, None),
    ("embeddings", c_bool, False),
    ("offload_kqv", c_bool, True),
    ("no_perf", c_bool, True),
    ("op_offload", c_bool, True),
    ("swa_full", c_bool, True),
    ("kv_unified", c_bool, False),
    ("samplers", c_void_p, None),
    ("n_samplers", c_size_t, 0),
    ("ctx_other", c_void_p, None),
]
# Newest first; at most one can read as all defaults, because the field between shifts the booleans.
CONTEXT_LAYOUTS = (
    _params("ContextParams026", [*_CONTEXT_HEAD, ("moe_cache_size", c_size_t, 0), *_CONTEXT_REST]),
    _params("ContextParams025", [*_CONTEXT_HEAD, *_CONTEXT_REST]),
)


class Batch(Structure):
    """``struct llama_batch``; null ``pos`` and ``seq_id`` mean: append to sequence 0."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", POINTER(c_int8)),
    )


class TypeTraits(Structure):
    """``struct ggml_type_traits``."""

    _fields_ = (
        ("type_name", c_char_p),
        ("block", c_int64),
        ("block_interleave", c_int64),
        ("type_size", c_size_t),
        ("is_quantized", c_bool),
        ("to_float", c_void_p),
        ("from_float", c_void_p),
    )


class Feature(Structure):
    """``struct ggml_backend_feature``; a null name ends the list."""

    _fields_ = (("name", c_char_p), ("value", c_char_p))


class InitParams(Structure):
    """``struct ggml_init_params``."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class GgufParams(Structure):
    """``struct gguf_init_params``."""

    _fields_ = (("no_alloc", c_bool), ("ctx", c_void_p))


Features = CFUNCTYPE(POINTER(Feature), c_void_p)

# name -> (result, arguments); the two functions that take ContextParams are typed once its layout is known.
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_version": (c_char_p, []),
    "ggml_commit": (c_char_p, []),
    "llama_log_set": (None, [LogCallback, c_void_p]),
    "ggml_init": (c_void_p, [InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_graph_overhead": (c_size_t, []),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_new_tensor_4d": (c_void_p, [c_void_p, c_int, c_int64, c_int64, c_int64, c_int64]),
    "ggml_permute": (c_void_p, [c_void_p, c_void_p, c_int, c_int, c_int, c_int]),
    "ggml_mul": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_rms_norm": (c_void_p, [c_void_p, c_void_p, c_float]),
    "ggml_soft_max_ext": (c_void_p, [c_void_p, c_void_p, c_void_p, c_float, c_float]),
    "ggml_swiglu_split": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_rope_ext": (c_void_p, [*[c_void_p] * 4, *[c_int] * 3, *[c_float] * 6]),
    "ggml_flash_attn_ext": (c_void_p, [*[c_void_p] * 5, *[c_float] * 3]),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_nbytes": (c_size_t, [c_void_p]),
    "ggml_get_type_traits": (POINTER(TypeTraits), [c_int]),
    "ggml_op_name": (c_char_p, [c_int]),
    "ggml_set_name": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_buffer_get_type": (c_void_p, [c_void_p]),
    "ggml_backend_load": (c_void_p, [c_char_p]),
    "ggml_backend_dev_by_type": (c_void_p, [c_int]),
    "ggml_backend_dev_name": (c_char_p, [c_void_p]),
    "ggml_backend_dev_description": (c_char_p, [c_void_p]),
    "ggml_backend_reg_dev_count": (c_size_t, [c_void_p]),
    "ggml_backend_reg_dev_get": (c_void_p, [c_void_p, c_size_t]),
    "ggml_backend_dev_backend_reg": (c_void_p, [c_void_p]),
    "ggml_backend_dev_init": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_dev_buffer_type": (c_void_p, [c_void_p]),
    "ggml_backend_dev_supports_op": (c_bool, [c_void_p, c_void_p]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_free": (None, [c_void_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "gguf_init_from_file": (c_void_p, [c_char_p, GgufParams]),
    "gguf_free": (None, [c_void_p]),
    "gguf_find_key": (c_int64, [c_void_p, c_char_p]),
    "gguf_get_kv_type": (c_int, [c_void_p, c_int64]),
    "gguf_get_val_data": (c_void_p, [c_void_p, c_int64]),
    "gguf_get_val_str": (c_char_p, [c_void_p, c_int64]),
    "gguf_find_tensor": (c_int64, [c_void_p, c_char_p]),
    "gguf_get_data_offset": (c_size_t, [c_void_p]),
    "gguf_get_tensor_offset": (c_size_t, [c_void_p, c_int64]),
    "gguf_get_tensor_size": (c_size_t, [c_void_p, c_int64]),
    "gguf_get_tensor_type": (c_int, [c_void_p, c_int64]),
    "gguf_get_tensor_ne": (POINTER(c_int64 * 4), [c_void_p, c_int64]),
    "llama_version": (c_char_p, []),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (ModelParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_free": (None, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_batch_get_one": (Batch, [POINTER(c_int32), c_int32]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
    "llama_detokenize": (c_int32, [c_void_p, POINTER(c_int32), c_int32, c_char_p, c_int32, c_bool, c_bool]),
}
