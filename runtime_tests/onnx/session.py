"""An exported folder in an ONNX Runtime, wherever that runs: what the ladder asks of it."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeqaf import witness
from edgeqaf.digest import Floats
from edgeqaf.errors import EdgeqafError, Refused, RuntimeAbsent
from edgeqaf.protocols import ALL, Stored
from edgeqaf.qtensor import QTensor
from edgeqaf.tokenizer import Tokenizer
from edgeqaf.vary import THREADS, Varied
from runtime_tests.onnx import cut, cut_exact
from runtime_tests.onnx.worker import Setting

MODEL = "model.onnx"
LEVEL = "session.qdq_matmulnbits_accuracy_level"  # a session's entry for the accuracy level
ROWS = 4096  # rows of one matmul call, to bound memory
BATCH = 16  # prompts generated from at once
FUSING = "QDQSelectorActionTransformer"  # ONNX Runtime's name for the step that makes MatMulNBits


class Loaded(Protocol):
    """A model that an ONNX Runtime has loaded (`worker.Loaded`, `places.Remote`)."""

    inputs: dict[str, list[Any]]
    rewritten_by: list[str] | None
    threads: int | None

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Every output by name."""


Load = Callable[[str | bytes, Setting], Loaded]


class OnnxSession:
    """One folder in one ONNX Runtime; the protocols are `edgeqaf.protocols.Session` and `edgeqaf.vary.Varies`.

    load:    loads a model, given as its path or its bytes; raises whatever its runtime does.
    setting: how every model is loaded.
    unfused: the error for a linear that does not become MatMulNBits; None if it need not.
    unproven: widths of codes of which no answer of `linear` can be foretold.
    """

    def __init__(
        self, folder: Path, load: Load, setting: Setting, unfused: type[EdgeqafError] | None = None,
        unproven: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        self._folder, self._load, self._setting, self._unfused = folder.resolve(), load, setting, unfused
        self._unproven = unproven
        self._cut: tuple[str, Loaded] | None = None  # the last linear, kept for the next call

    def weights(self, stored: Stored, rows: slice = ALL) -> Floats:
        """The runtime's own DequantizeLinear of one tensor."""
        decoding = cut_exact.decoding if self._exact else cut.decoding
        graph = decoding(self._proto, stored.name, rows)
        # as written: what optimizes would have the CPU decode it while it loads, whoever is to run it
        (decoded,) = self._answer(self._loaded(graph, level="off", arena=False), {}).values()
        weights: Floats = decoded
        return weights

    def linear(self, stored: Stored, x: Floats) -> Floats:
        """The runtime's own matmul: x [m, in] -> [m, out].

        Raises ``unfused`` if the kernel should be a fused one and ONNX Runtime did not fuse, RuntimeAbsent if nobody
        can tell what it should answer.
        """
        if isinstance(stored.tensor, QTensor) and (bits := stored.tensor.grid.bits) in self._unproven:
            raise RuntimeAbsent(f"the order in which this kernel adds up codes of {bits} bits is not known")
        if self._cut is None or self._cut[0] != stored.name:
            level = self._setting.get("config", {}).get(LEVEL, "1")
            linear = cut_exact.linear if self._exact else partial(cut.linear, level=level)
            graph = linear(self._proto, stored.name)
            self._cut = None  # before the next is loaded, not after
            self._cut = (stored.name, self._seen_fused(graph, stored.name) if self._unfused else self._loaded(graph))
        loaded = self._cut[1]
        (name,) = loaded.inputs
        chunks = np.array_split(np.ascontiguousarray(x, np.float32), -(-len(x) // ROWS))  # even, so never one row left
        return np.concatenate([y[0] for chunk in chunks for y in self._answer(loaded, {name: chunk[None]}).values()])

    def logits(self, tokens: Sequence[int]) -> Floats:
        """Logits after each token of one sequence: [len(tokens), vocab]."""
        ids = np.array([list(tokens)], np.int64)
        logits: Floats = self._step(ids, np.ones_like(ids), self._empty_cache(1))[0][0]
        return logits

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, prompt=True)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens`` by the tokenizer files in the artifact's own folder."""
        return self._tokenizer.decode(tokens)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
        """Greedy continuation of each prompt, in order, up to and without the end token."""
        for start in range(0, len(prompts), BATCH):
            yield from self._generate(prompts[start : start + BATCH], max_new_tokens)

    def vary(self, prompts: Sequence[Sequence[int]]) -> Iterator[Varied]:
        """By threads alone, and only as far as the runtime takes the number; the model is loaded once for each."""
        for threads in THREADS:
            other = OnnxSession(self._folder, self._load, {**self._setting, "threads": threads})
            if other._whole.threads == threads:
                yield Varied(threads, None, witness.digest([other.logits(tokens) for tokens in prompts]))

    def _generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """One batch, padded on the left so that all prompts end together."""
        longest = max(map(len, prompts))
        ids = np.array([[self._tokenizer.pad] * (longest - len(p)) + list(p) for p in prompts], np.int64)
        mask = np.array([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], np.int64)
        cache = self._empty_cache(len(prompts))
        made: list[list[int]] = [[] for _ in prompts]
        running = set(range(len(prompts)))
        for _ in range(max_new_tokens):
            logits, cache = self._step(ids, mask, cache)
            ids = logits[:, -1].argmax(-1)[:, None]
            running = {i for i in running if int(ids[i, 0]) not in self._tokenizer.eos}
            for i in running:
                made[i].append(int(ids[i, 0]))
            if not running:
                break
            mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        return made

    def _step(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], cache: dict[str, Floats]
    ) -> tuple[Floats, dict[str, Floats]]:
        """Run the whole model on new tokens [batch, new] after ``cache``: the logits and the cache after them."""
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        heads = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        made = self._answer(self._whole, {**heads, **cache})
        return made.pop("logits"), {name.replace("present", "past_key_values", 1): part for name, part in made.items()}

    def _empty_cache(self, batch: int) -> dict[str, Floats]:
        parts = {name: shape for name, shape in self._whole.inputs.items() if name.startswith("past_key_values.")}
        return {name: np.zeros((batch, shape[1], 0, shape[3]), np.float32) for name, shape in parts.items()}

    @cached_property
    def _whole(self) -> Loaded:
        return self._loaded(self._folder / MODEL)

    @cached_property
    def _proto(self) -> Any:
        import onnx

        return onnx.load(str(self._folder / MODEL), load_external_data=False)

    @cached_property
    def _exact(self) -> bool:
        return cut_exact.holds(self._proto)

    @cached_property
    def _data(self) -> list[str]:
        return cut.data_files(self._proto)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self._folder)

    def _seen_fused(self, graph: Any, name: str) -> Loaded:
        """The linear loaded, if it was seen to have become the fused kernel."""
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            loaded = self._loaded(graph, optimized=str(optimized))
            if loaded.rewritten_by is not None:  # it has no files to write to, and says what changed the graph
                kernels, fused = loaded.rewritten_by, FUSING in loaded.rewritten_by
            else:
                kernels = [node.op_type for node in onnx.load(str(optimized), load_external_data=False).graph.node]
                fused = "MatMulNBits" in kernels and "DequantizeLinear" not in kernels
        if self._unfused and not fused:
            raise self._unfused(
                f"{name}: ONNX Runtime did not fuse it, it runs {', '.join(kernels)}",
                "this build cannot verify fused kernels; use the version in constraints.txt",
            )
        return loaded

    def _answer(self, loaded: Loaded, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Every output by name; Refused for a model that loads and does not run."""
        try:
            return loaded.run(feeds)
        except EdgeqafError:
            raise
        except Exception as error:  # as in `_loaded`
            reason = str(error).strip().splitlines()[0]
            raise Refused(f"ONNX Runtime does not run {self._folder}: {reason}", "export the model again") from error

    def _loaded(self, model: Any, **more: Any) -> Loaded:
        """Load a model file, or a graph cut from it whose weights stay in the folder's data file. more: `Setting`."""
        setting: Setting = {**self._setting, "folder": str(self._folder), "data": self._data, **more}  # type: ignore[typeddict-item]
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        try:
            return self._load(source, setting)
        except Exception as error:  # its exceptions share no base but Exception
            reason = str(error).strip().splitlines()[0]
            raise Refused(f"ONNX Runtime does not load {self._folder}: {reason}", "export the model again") from error
