"""An exported folder in an ONNX Runtime whose linears are watched while the whole model runs (rung R3)."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.errors import EdgeqafError, RuntimeAbsent
from edgeqaf.protocols import Artifact
from edgeqaf.qtensor import QTensor
from edgeqaf.replay import Product
from edgeqaf.report import compare_bits
from runtime_tests.onnx import cut, tap
from runtime_tests.onnx.emulate.envelope import envelope
from runtime_tests.onnx.emulate.operands import Matrix
from runtime_tests.onnx.emulate.paths import Case, Path
from runtime_tests.onnx.identify import identify
from runtime_tests.onnx.session import Load, Loaded, OnnxSession
from runtime_tests.onnx.tap import Linear
from runtime_tests.onnx.worker import Setting

MOST = 256 << 20  # bytes of inputs and outputs that are watched in one run of the model
INT8_LEVEL = 4  # the accuracy level whose kernels round activations to 8 bits
LARGE = 1 << 30  # bytes of a model that is held once and not twice, watched and unwatched
Seen = list[tuple[Floats, Floats]]  # a linear's inputs [m, in] and outputs [m, out], once for each run of the graph


class ReplayingSession(OnnxSession):
    """`OnnxSession`, and `edgeqaf.replay.Replays`. int8: whether its kernels may round activations to 8 bits."""

    def __init__(
        self, artifact: Artifact, load: Load, setting: Setting, unfused: type[EdgeqafError] | None = None,
        unproven: tuple[int, ...] = (), int8: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(artifact.path, load, setting, unfused, unproven)
        self._artifact, self._int8 = artifact, int8
        self._paths: dict[tuple[str, Case], Path | None] = {}
        self._tapped: tuple[Sequence[Linear], Loaded] | None = None  # the last group, kept for the next prompt

    def replay(
        self, tokens: Sequence[int], more: int, expected: Mapping[str, QTensor], see: Callable[[Product], None] | None
    ) -> Floats:
        """With a model of many linears, it is run once for each group of them that memory has room for.

        Raises RuntimeAbsent if watching one group changes other logits than watching another.
        """
        if see is None or not self._linears:
            if self._large:
                self._tapped = None
            return self._run(self._whole, tokens, more, (), {})
        shapes = {linear.name: expected[linear.name].shape for linear in self._linears}
        made: Floats | None = None
        for group in tap.groups(self._linears, shapes, len(tokens) + more, MOST):
            seen: defaultdict[str, Seen] = defaultdict(list)
            logits = self._run(self._watched(group), tokens, more, group, seen)
            if made is not None and (changed := compare_bits(made, logits)).any():
                raise RuntimeAbsent(f"watching changes what is computed: {changed.sum()} of {made.size} logits differ")
            made = logits
            for linear in group:
                for product in self._products(linear.name, expected[linear.name], seen.pop(linear.name)):
                    see(product)
        assert made is not None
        return made

    def _run(
        self, model: Loaded, tokens: Sequence[int], more: int, group: Sequence[Linear], seen: Mapping[str, Seen]
    ) -> Floats:
        """Logits after each token of the prompt, and of ``more`` one at a time; what linears did goes to ``seen``."""
        cache = self._empty_cache(1)
        ids, length, logits = list(tokens), 0, []
        while length < len(tokens) + more:
            length += len(ids)
            step = np.array([ids], np.int64)
            heads = {
                "input_ids": step,
                "attention_mask": np.ones((1, length), np.int64),
                "position_ids": np.arange(length - len(ids), length)[None],
            }
            found = self._answer(model, {**heads, **cache})
            logits.append(found["logits"][0])
            for linear in group:
                seen[linear.name].append(tuple(found[v].reshape(len(ids), -1) for v in (linear.x, linear.y)))
            cache = {
                n.replace("present", "past_key_values", 1): v for n, v in found.items() if n.startswith("present.")
            }
            ids = [int(logits[-1][-1].argmax())]
        return np.concatenate(logits)

    def _products(self, name: str, q: QTensor, seen: Seen) -> Iterator[Product]:
        matrix = Matrix(q)
        for x, y in seen:
            case = Case(len(x), *q.shape, self._setting.get("threads", 1))
            path = self._path(name, case)
            if path is None:
                out, inputs = q.shape
                where = f"{q.grid.name} [{out}, {inputs}], {len(x)} row{'s' * (len(x) != 1)}"
                yield Product(name, where, y, *envelope(q, x, self._rounds))
            else:
                yield Product(name, path.name, y, path.product(matrix, x, case))

    def _path(self, name: str, case: Case) -> Path | None:
        """By the file's own integers, whatever the model is held against; once for each grid and case."""
        q = self._artifact.tensors[name].tensor
        assert isinstance(q, QTensor)
        if (q.grid.name, case) not in self._paths:
            alone = cut.linear(self._proto, f"{name}.codes", rounds=True)
            (linear,) = tap.linears(alone)
            loaded = self._loaded(tap.tapped(alone, [linear]))
            (into,) = loaded.inputs

            def run(x: Floats) -> tuple[Floats, Floats]:
                found = self._answer(loaded, {into: x[None]})
                return found.get(linear.x, x[None])[0], found[linear.y][0]

            self._paths[q.grid.name, case] = identify(run, q, case.rows, case.threads)
        return self._paths[q.grid.name, case]

    def _watched(self, group: Sequence[Linear]) -> Loaded:
        if self._tapped is None or self._tapped[0] != group:
            self._tapped = None  # before the next is loaded, not after
            if self._large:
                self.__dict__.pop("_whole", None)
            self._tapped = group, self._loaded(tap.tapped(self._proto, group))
        return self._tapped[1]

    @cached_property
    def _large(self) -> bool:
        return sum((self._folder / name).stat().st_size for name in self._data) > LARGE

    @cached_property
    def _rounds(self) -> bool:
        """Whether any kernel may round activations: ONNX Runtime's own operator has its level written in the model."""
        levels = (a.i for n in self._proto.graph.node for a in n.attribute if a.name == "accuracy_level")
        return self._int8 or INT8_LEVEL in levels

    @cached_property
    def _linears(self) -> list[Linear]:
        return list(tap.linears(self._proto))
