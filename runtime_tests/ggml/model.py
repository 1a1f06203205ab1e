"""A whole model in llama.cpp, with every setting that could change a bit held fixed.

One device (the CPU, or the GPU of the library), one sequence, batches of at most `BATCH` tokens, and a cleared cache
before each prompt; unless `Settings` say otherwise, flash attention is off, and keys and values are cached in float32.
So the same file gives the same logits on every run, whatever the cache size or the thread count (`Model.under` is
there to see it; one token by itself, under flash attention, is the exception). What remains free is the shape of the
batch: a prompt evaluated at once and the same prompt token by token meet different kernels, and may differ.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.errors import OutOfResources, Refused
from runtime_tests.ggml import structs
from runtime_tests.ggml.library import Library
from runtime_tests.ggml.tap import NodeTap

BATCH = 512  # tokens evaluated at once, at most
ALL_LAYERS = 1 << 20  # more than a model has


@dataclass(frozen=True)
class Settings:
    """half: keys and values are cached in float16, llama.cpp's default. flash: flash attention is on."""

    half: bool = False
    flash: bool = False

    def __str__(self) -> str:
        return f"{'float16' if self.half else 'float32'} cache{', flash attention' if self.flash else ''}"


FIXED = Settings()


class Model:
    """A GGUF model loaded by llama.cpp. Raises Refused, with llama.cpp's reason, if it will not load.

    rows: of activations that one graph computes at most (``n_ubatch``); a longer batch is cut. None: `BATCH`.
    """

    def __init__(self, library: Library, path: Path, repack: bool, threads: int, rows: int | None = None) -> None:
        self._library, self._c, self._path = library, library.c, path
        self._threads, self._rows = threads, rows
        self._settings = FIXED
        self._context: int | None = None
        self._capacity = 0
        self._tap: NodeTap | None = None
        devices = (ctypes.c_void_p * 2)(library.gpu)  # a list that ends with a null: no other GPU
        params = self._c.llama_model_default_params()
        params.devices = ctypes.addressof(devices)
        params.n_gpu_layers = 0 if library.gpu is None else ALL_LAYERS
        params.check_tensors = True
        params.use_extra_bufts = repack
        library.log.clear()
        self._model = self._c.llama_model_load_from_file(bytes(path), params)
        if not self._model:
            raise Refused(f"{path}: llama.cpp does not load it: {library.log.message()}", "export the model again")
        self._vocab = self._c.llama_model_get_vocab(self._model)
        self._size: int = self._c.llama_vocab_n_tokens(self._vocab)

    def close(self) -> None:
        self._close_context()
        self._c.llama_model_free(self._model)

    def logits(self, tokens: Sequence[int]) -> Floats:
        """Logits after each token: float32 [len(tokens), vocab]."""
        self._start(len(tokens))
        logits = np.empty((len(tokens), self._size), np.float32)
        self._fill(tokens, logits)
        return logits

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
        """Greedy continuations, one prompt after the other, up to and without an end-of-generation token.

        The lowest of equally likely tokens is taken, as `torch.argmax` does.
        """
        longest = max(map(len, prompts), default=0) + max_new_tokens
        for prompt in prompts:
            self._start(longest)
            yield list(self._continuation(prompt, max_new_tokens))

    def replay(self, tokens: Sequence[int], more: int) -> Floats:
        """Logits after each token of a prompt, and after each of ``more`` that follow it by greed, one at a time.

        float32 [len(tokens) + more, vocab]. The lowest of equally likely tokens is taken; an end token ends nothing.
        """
        self._start(len(tokens) + more)
        logits = np.empty((len(tokens) + more, self._size), np.float32)
        self._fill(tokens, logits[: len(tokens)])
        for at in range(len(tokens), len(logits)):
            self._fill([int(logits[at - 1].argmax())], logits[at : at + 1])
        return logits

    @contextmanager
    def tapped(self, tap: NodeTap) -> Iterator[None]:
        """Show ``tap`` what runs inside the block."""
        self._close_context()
        self._tap = tap
        try:
            yield
        finally:
            self._tap = None
            self._close_context()

    @contextmanager
    def under(self, settings: Settings = FIXED, threads: int | None = None, rows: int | None = None) -> Iterator[None]:
        """Run what is inside the block otherwise; threads, and rows of activations at once, stay if not named."""
        before = self._settings, self._threads, self._rows
        self._close_context()
        self._settings, self._threads, self._rows = settings, threads or self._threads, rows or self._rows
        try:
            yield
        finally:
            self._settings, self._threads, self._rows = before
            self._close_context()

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, with the special tokens that the file asks for; markup is plain text."""
        raw = text.encode()
        room = len(raw) + 16  # a byte is at most one token, and a few may be added at the ends
        tokens = (ctypes.c_int32 * room)()
        count = self._c.llama_tokenize(self._vocab, raw, len(raw), tokens, room, True, False)
        if count < 0:
            raise Refused(f"{self._path}: llama.cpp cannot tokenize {text[:40]!r}", "check the model's tokenizer")
        return list(tokens[:count])

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``; special tokens are left out and broken UTF-8 is replaced."""
        ids = self._ids(tokens)
        room = 64 * len(tokens) + 16
        while True:
            text = ctypes.create_string_buffer(room)
            count = self._c.llama_detokenize(self._vocab, ids, len(tokens), text, room, True, False)
            if count >= 0:
                return text.raw[:count].decode("utf-8", "replace")
            room = -count

    def _continuation(self, prompt: Sequence[int], max_new_tokens: int) -> Iterator[int]:
        tokens = prompt
        for _ in range(max_new_tokens):
            for start in range(0, len(tokens), BATCH):
                self._evaluate(tokens[start : start + BATCH], every=False)
            last = np.ctypeslib.as_array(self._c.llama_get_logits(self._context), (self._size,))
            token = int(last.argmax())
            if self._c.llama_vocab_is_eog(self._vocab, token):
                return
            yield token
            tokens = [token]

    def _fill(self, tokens: Sequence[int], logits: Floats) -> None:
        """Append ``tokens`` to the sequence and write the logits after each to ``logits`` [len(tokens), vocab]."""
        for start in range(0, len(tokens), BATCH):
            rows = logits[start : start + BATCH]
            self._evaluate(tokens[start : start + BATCH], every=True)
            rows[:] = np.ctypeslib.as_array(self._c.llama_get_logits(self._context), rows.shape)

    def _evaluate(self, tokens: Sequence[int], every: bool) -> None:
        """Append ``tokens`` to the sequence; logits after every one of them, or after the last."""
        batch = structs.Batch(n_tokens=len(tokens), token=self._ids(tokens))
        if every:
            batch.logits = (ctypes.c_int8 * len(tokens))(*[1] * len(tokens))
        self._library.log.clear()
        status = self._c.llama_decode(self._context, batch)
        if self._tap:
            self._tap.reraise()
        if status:
            raise Refused(
                f"{self._path}: llama.cpp stopped with status {status}: {self._library.log.message()}",
                "check the model and the memory",
            )

    def _ids(self, tokens: Sequence[int]) -> "ctypes.Array[ctypes.c_int32]":
        foreign = [token for token in tokens if not 0 <= token < self._size]
        if foreign:
            raise Refused(f"{self._path}: token {foreign[0]} is outside its vocabulary of {self._size}")
        return (ctypes.c_int32 * len(tokens))(*tokens)

    def _start(self, length: int) -> None:
        """An empty cache with room for ``length`` tokens."""
        if length == 0:
            raise Refused(f"{self._path}: an empty prompt", "a prompt needs at least one token")
        if length > self._capacity:
            self._open_context(-(-length // 256) * 256)
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)

    def _close_context(self) -> None:
        if self._context:
            self._c.llama_free(self._context)
        self._context, self._capacity = None, 0

    def _open_context(self, capacity: int) -> None:
        self._close_context()
        params = self._c.llama_context_default_params()
        params.n_ctx = capacity
        params.n_batch, params.n_ubatch = BATCH, self._rows or BATCH
        params.n_outputs_max_per_seq = 0  # as many as the batch has tokens
        params.n_threads = params.n_threads_batch = self._threads
        params.flash_attn_type = int(self._settings.flash)  # enum llama_flash_attn_type
        params.type_k = params.type_v = structs.TYPE_F16 if self._settings.half else structs.TYPE_F32
        params.offload_kqv = params.op_offload = self._library.gpu is not None
        if self._tap:
            params.cb_eval = ctypes.cast(self._tap.callback, ctypes.c_void_p)
        self._library.log.clear()
        self._context = self._c.llama_init_from_model(self._model, params)
        if not self._context:
            raise OutOfResources(
                f"{self._path}: llama.cpp opens no context of {capacity} tokens: {self._library.log.message()}",
                "free some memory, or use shorter prompts",
            )
        self._capacity = capacity
