"""ONNX Runtime on the CPU: an exported folder run as it is deployed.

Three configurations. "off" executes the graph as written: DequantizeLinear, then a float matmul.
At "fused level 1" and "fused level 4" ONNX Runtime replaces each pair by its low-bit kernel
MatMulNBits; level 4, its default, also rounds activations to 8 bits per block.

Single tensors and linears are cut out of the artifact's own graph, with initializers that point into
its own data file. `Session.linear` makes ONNX Runtime write down the graph it optimized, and refuses
if the fused kernel is not in it.

How they are cut, and how the runtime is made to decode: `runtime_tests.onnx.forms`.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from edgeqaf.protocols import Artifact, Availability, Configuration, Form, RuntimeOptions, Stored
from edgeqaf.tokenizer import Tokenizer
from runtime_tests.onnx.forms import decoding, linear

MODEL = "model.onnx"
LEVELS = {"off": None, "fused level 1": "1", "fused level 4": "4"}
ROWS = 1024  # rows of one matmul call, to bound memory
BATCH = 16  # prompts generated from at once


class OnnxRuntime:
    """The runtime; the protocol is `edgeqaf.protocols.Runtime`."""

    reads: ClassVar[str | None] = "onnx"
    configurations: ClassVar[tuple[Configuration, ...]] = tuple(
        Configuration(name, int8_activations=level == "4", offset_form=Form.TWO_TERM, split_zero=level == "4")
        for name, level in LEVELS.items()
    )

    def availability(self, options: RuntimeOptions) -> Availability:
        """Its version, or why it cannot be imported."""
        try:
            import onnxruntime
        except Exception as error:  # a broken binary can raise anything
            return Availability(None, f"onnxruntime cannot be imported: {error}")
        return Availability(onnxruntime.__version__)

    @contextmanager
    def open(
        self, artifact: Artifact, configuration: Configuration, options: RuntimeOptions
    ) -> Iterator["OnnxRuntimeSession"]:
        """Open the folder; the whole model is loaded when `logits` or `generate` first need it."""
        yield OnnxRuntimeSession(artifact.path, LEVELS[configuration.name], options.threads)


class OnnxRuntimeSession:
    """One folder under one configuration; the protocol is `edgeqaf.protocols.Session`.

    level: accuracy level of MatMulNBits, or None to run the graph unoptimized.
    """

    def __init__(self, folder: Path, level: str | None, threads: int) -> None:
        self._folder, self._level, self._threads = folder, level, threads
        self._cut: tuple[str, Any] = ("", None)  # the last linear's session, kept for the next call

    def weights(self, stored: Stored) -> Floats:
        graph = decoding(self._proto, stored.name)
        (decoded,) = self._session(graph).run(None, {})
        return np.ascontiguousarray(decoded.T) if stored.name.endswith(".codes") else decoded

    def linear(self, stored: Stored, x: Floats) -> Floats:
        """The runtime's own matmul: x [m, in] -> [m, out].

        Raises Refused if the configuration is a fused one and ONNX Runtime did not fuse.
        """
        if self._cut[0] != stored.name:
            graph = linear(self._proto, stored.name, self._level or "1")
            self._cut = (stored.name, self._session(graph) if self._level is None else self._fused(graph, stored.name))
        session = self._cut[1]
        name = session.get_inputs()[0].name
        chunks = np.array_split(np.ascontiguousarray(x, np.float32), -(-len(x) // ROWS))  # even, so never one row left
        return np.concatenate([session.run(None, {name: chunk[None]})[0][0] for chunk in chunks])

    def logits(self, tokens: Sequence[int]) -> Floats:
        """Logits after each token of one sequence: [len(tokens), vocab]."""
        ids = np.array([list(tokens)], np.int64)
        logits: Floats = self._step(ids, np.ones_like(ids), self._empty_cache(1))[0].numpy()[0]
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

    def _generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """One batch, padded on the left so that all prompts end together."""
        longest = max(map(len, prompts))
        ids = np.array([[self._tokenizer.pad] * (longest - len(p)) + list(p) for p in prompts], np.int64)
        mask = np.array([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], np.int64)
        cache = self._empty_cache(len(prompts))
        made: list[list[int]] = [[] for _ in prompts]
        running = set(range(len(prompts)))
        for _ in range(max_new_tokens):
            logits, *cache = self._step(ids, mask, cache)
            ids = logits.numpy()[:, -1].argmax(-1)[:, None]
            running = {i for i in running if int(ids[i, 0]) not in self._tokenizer.eos}
            for i in running:
                made[i].append(int(ids[i, 0]))
            if not running:
                break
            mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        return made

    def _step(self, ids: NDArray[np.int64], mask: NDArray[np.int64], cache: list[Any]) -> list[Any]:
        """Run the whole model on new tokens [batch, new] after ``cache``: logits and the cache, as OrtValues."""
        from onnxruntime import OrtValue

        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        heads = [OrtValue.ortvalue_from_numpy(np.ascontiguousarray(part)) for part in (ids, mask, positions)]
        names = ["input_ids", "attention_mask", "position_ids", *self._cache_names]
        result: list[Any] = self._whole.run_with_ort_values(None, dict(zip(names, [*heads, *cache], strict=True)))
        return result

    def _empty_cache(self, batch: int) -> list[Any]:
        from onnxruntime import OrtValue

        shapes = [i.shape for i in self._whole.get_inputs() if i.name in set(self._cache_names)]
        return [OrtValue.ortvalue_from_numpy(np.zeros((batch, s[1], 0, s[3]), np.float32)) for s in shapes]

    @cached_property
    def _cache_names(self) -> list[str]:
        """Inputs of the cache; its outputs follow the logits in the same order."""
        return [i.name for i in self._whole.get_inputs() if i.name.startswith("past_key_values.")]

    @cached_property
    def _whole(self) -> Any:
        return self._session(self._folder / MODEL)

    @cached_property
    def _proto(self) -> Any:
        import onnx

        return onnx.load(str(self._folder / MODEL), load_external_data=False)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self._folder)

    def _fused(self, graph: Any, name: str) -> Any:
        """A session whose optimized graph was seen to hold the fused kernel."""
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            session = self._session(graph, optimized)
            kernels = [node.op_type for node in onnx.load(str(optimized), load_external_data=False).graph.node]
        if "MatMulNBits" not in kernels or "DequantizeLinear" in kernels:
            raise Refused(
                f"{name}: ONNX Runtime did not fuse it, it runs {', '.join(kernels)}",
                "this build cannot verify fused kernels; use the version in constraints.txt",
            )
        return session

    def _session(self, model: Any, optimized: Path | None = None) -> Any:
        """Load a model file, or a graph cut from it whose weights stay in the folder's data file."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self._level is None:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.enable_cpu_mem_arena = False  # or every decoded weight stays in memory
        else:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", self._level)
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        if not isinstance(model, Path):
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._folder))
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        try:
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base but Exception
            reason = str(error).strip().splitlines()[0]
            raise Refused(f"ONNX Runtime does not load {self._folder}: {reason}", "export the model again") from error


runtime = OnnxRuntime()
