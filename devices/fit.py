"""Whether a model fits a device: what a runtime holds in memory, part by part, against a budget.

=============== ===================================================================================
part            bytes
=============== ===================================================================================
weights         the artifact: of an exported file its size; else codes, scales and zeros of each
                quantized tensor plus 4 bytes for each float weight
packed copy     what the runtime keeps beside the artifact after packing matrices for its kernels
KV cache        layers x KV heads x head size x 2 x context x bytes per element
compute         activations of one batch of prompt tokens; see `_compute_bytes`
runtime         code, tokenizer and bookkeeping
=============== ===================================================================================

Weights and KV cache are exact. The others are estimates for one sequence on a CPU, from the measurements
named beside them, and err on the large side. A graphics driver's own memory is not counted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from devices.profile import DeviceProfile
from devices.size import Dimensions, Sized
from edgeqaf.errors import UsageError

BATCH_TOKENS = 512  # llama.cpp's default n_ubatch: prompt tokens computed at once
# ggml 0.26.0, x86-64: 19 MiB with an empty model and 204 bytes per entry of the vocabulary, rounded up.
RUNTIME_BYTES, RUNTIME_BYTES_PER_ENTRY = 64 * 2**20, 256


@dataclass(frozen=True)
class Loading:
    """What holding an artifact of one format costs the runtime that loads it.

    kv_bytes:        bytes of one element of the KV cache.
    packed_copy:     bytes held beside each byte of a quantized matrix, after packing it for the kernels.
    packs_head:      whether the float32 head is packed, and so held, a second time.
    mask_bytes:      bytes per element of the attention mask [batch, context].
    attention_bytes: bytes per attention score held for a whole batch; 0 where it is computed in blocks.
    """

    runtime: str
    kv_bytes: int
    packed_copy: float
    packs_head: bool
    mask_bytes: int
    attention_bytes: int


LOADING = {
    # The defaults: KV in f16, flash attention. Pages of the mapped file behind a repacked matrix are never
    # read again and cost nothing when memory is short, so the weights count once.
    "gguf": Loading("llama.cpp", kv_bytes=2, packed_copy=0, packs_head=False, mask_bytes=2, attention_bytes=0),
    # onnxruntime 1.31.1, x86-64: 82.0 MiB of uint4 matrices held 192 to 224 MiB after loading, whatever the
    # accuracy level; a constant float operand of MatMul is packed too (MatMul<float>::PrePack).
    "onnx": Loading("onnxruntime", kv_bytes=4, packed_copy=1.75, packs_head=True, mask_bytes=4, attention_bytes=4),
}


@dataclass(frozen=True)
class Fit:
    """The answer: bytes by part, the budget, and, if it does not fit, why.

    tokens_per_second_bound: roofline bound on generation: memory bandwidth over the bytes that one token
                             reads. No device reaches it; only a model that stays in the processor's cache
                             can pass it.
    notes:                   worth knowing, but no obstacle.
    """

    device: str
    format: str
    context_tokens: int
    bytes_by_part: Mapping[str, int]
    budget_bytes: int
    reasons: tuple[str, ...]
    tokens_per_second_bound: float
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return not self.reasons

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes_by_part.values())


def fits(model: Sized, profile: DeviceProfile, context_tokens: int | None = None) -> Fit:
    """Compare what ``model`` needs at ``context_tokens`` with what ``profile`` leaves to an app.

    Without a number the profile's context is taken, or the model's if that is shorter. Raises
    UsageError for a context that the model was not made for.
    """
    positions, loading = model.dimensions.positions, LOADING[model.format]
    context = min(profile.context_tokens.value, positions) if context_tokens is None else context_tokens
    if not 0 < context <= positions:
        raise UsageError(f"context {context} is outside the model's 1 to {positions}", "choose a context within it")
    parts = {
        "weights": model.weight_bytes,
        "packed copy": int(model.matrix_bytes * loading.packed_copy) + loading.packs_head * model.float_head_bytes,
        "KV cache": kv_bytes(model.dimensions, context, loading.kv_bytes),
        "compute": _compute_bytes(model.dimensions, context, loading),
        "runtime": RUNTIME_BYTES + RUNTIME_BYTES_PER_ENTRY * model.dimensions.vocabulary,
    }
    return Fit(
        device=profile.name,
        format=model.format,
        context_tokens=context,
        bytes_by_part=parts,
        budget_bytes=profile.budget_bytes,
        reasons=tuple(_reasons(model, profile, sum(parts.values()))),
        tokens_per_second_bound=profile.bandwidth_bytes_per_s.value / _streamed_bytes(model),
        notes=tuple(_notes(model, profile)),
    )


def kv_bytes(dimensions: Dimensions, context_tokens: int, element_bytes: int = 2) -> int:
    """Keys and values of every layer for ``context_tokens`` positions of one sequence."""
    d = dimensions
    return d.layers * d.kv_heads * d.head_size * 2 * context_tokens * element_bytes


def _compute_bytes(d: Dimensions, context: int, loading: Loading) -> int:
    """Activations of one batch of n = 512 tokens in float32.

    4 n (3 ffn + 5 hidden), with the mask of 2 n context bytes, is to 18 KiB what ggml 0.26.0 reserved for
    three llama models at three contexts each. 4 n (vocabulary + hidden) is what llama.cpp reserves where it
    keeps the logits of every prompt token, as earlier releases and the ONNX graph do. The larger counts.
    """
    n = BATCH_TOKENS
    activations = 4 * n * max(3 * d.ffn + 5 * d.hidden, d.vocabulary + d.hidden)
    return activations + n * context * (loading.mask_bytes + d.heads * loading.attention_bytes)


def _streamed_bytes(model: Sized) -> int:
    """Bytes that generating one token reads at least: all weights but an embedding table of its own."""
    return max(1, model.weight_bytes - model.lookup_bytes)


def _reasons(model: Sized, profile: DeviceProfile, total: int) -> Iterator[str]:
    runtime = LOADING[model.format].runtime
    if runtime not in profile.runtimes.value:
        yield f"{runtime}, which loads {model.format}, does not run on {profile.name}"
    if total > profile.budget_bytes:
        yield (
            f"{total / 2**20:.1f} MiB needed, {profile.budget_bytes / 2**20:.1f} MiB are left to an app "
            f"({profile.usable_share.value:.0%} of {profile.memory_bytes.value / 2**20:.0f} MiB)"
        )


def _notes(model: Sized, profile: DeviceProfile) -> Iterator[str]:
    for grid in model.grids:
        if grid not in profile.grids.value:
            yield f"{grid} is not among the grids recommended there: {', '.join(profile.grids.value)}"
