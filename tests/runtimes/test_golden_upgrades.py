"""Upgrades of ONNX Runtime between real versions: what a golden says of them is what the arrays say."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx_artifacts import EVERYDAY, EXPORTER, exported, quantized

from edgeqaf import plugins, witness
from edgeqaf.digest import Floats
from edgeqaf.protocols import Artifact, Configuration, RuntimeOptions
from edgeqaf.report import Verdict, compare_bits
from edgeqaf.tokenizer import Tokenizer
from runtime_tests import ladder
from runtime_tests.golden import comparison
from runtime_tests.golden.file import Entry, Golden
from runtime_tests.golden.isa import machine
from runtime_tests.golden.observation import BATCHES, activations
from runtime_tests.job import Job, Outcome

HERE, OLD, NEW = "onnxruntime", "onnxruntime_1_24", "onnxruntime_1_32"
VERSIONS = {HERE: "1.31.1", OLD: "1.24.4", NEW: "1.32.0"}
UPGRADES = [(OLD, HERE), (HERE, NEW), (OLD, NEW)]
each_upgrade = pytest.mark.parametrize(("old", "new"), UPGRADES, ids=lambda name: VERSIONS[name])
each_way = pytest.mark.parametrize("way", EVERYDAY, ids=lambda way: way.name)


@pytest.fixture(scope="module")
def artifact(tiny_float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(quantized(tiny_float_model, "q4_0"), tmp_path_factory.mktemp("dist") / EXPORTER.filename)


class Climbs:
    """Each made once. Entries are under one name, as those of an environment in which a package was upgraded."""

    def __init__(self, artifact: Artifact, places: Path) -> None:
        self._artifact, self._options = artifact, RuntimeOptions(places=places)
        self._made: dict[tuple[str, str], Outcome] = {}

    def outcome(self, name: str, way: Configuration) -> Outcome:
        if (name, way.name) not in self._made:
            runtime = plugins.find("runtimes", name)
            if (absent := runtime.availability(self._options)).version is None:
                pytest.skip(absent.reason)
            own = next(c for c in runtime.configurations if c.name == way.name)
            tokens = witness.prompts(Tokenizer(self._artifact.reference))
            expected = {n: q for n, _, q in self._artifact.quantized()}
            job = Job(name, own, self._artifact, expected, self._options, tokens, witness.PROMPTS, observed=True)
            self._made[name, way.name] = ladder.climb(job)
        return self._made[name, way.name]

    def entry(self, name: str, way: Configuration) -> Entry:
        observed = self.outcome(name, way).observed
        assert observed is not None
        assert observed.key.build == VERSIONS[name]
        return replace(observed, key=replace(observed.key, runtime=HERE))

    def products(self, name: str, way: Configuration) -> Iterator[tuple[str, str, Floats]]:
        """(batch, tensor, product) in the order in which goldens are compared."""
        runtime = plugins.find("runtimes", name)
        own = next(c for c in runtime.configurations if c.name == way.name)
        with runtime.open(self._artifact, own, self._options) as session:
            for title, rows in BATCHES.items():
                for tensor, stored, q in self._artifact.quantized():
                    yield title, tensor, session.linear(stored, activations(rows, q.shape[1]))


@pytest.fixture(scope="module")
def climbs(artifact: Artifact, places: Path) -> Climbs:
    return Climbs(artifact, places)


@each_way
@each_upgrade
def test_an_upgrade_has_no_golden_and_says_what_it_changed(
    old: str, new: str, way: Configuration, climbs: Climbs
) -> None:
    """Held against the old version's entry, the version left out on purpose: first product and token that differ."""
    known, found = climbs.entry(old, way), climbs.entry(new, way)
    absent = comparison.entry(Golden("", {}, (known,)), found, "onnxruntime", {})
    assert absent.verdict is Verdict.ABSENT
    start = f"no golden for build '{VERSIONS[new]}' (the nearest has '{VERSIONS[old]}'); held against it: "
    assert absent.detail.startswith(start)
    ignoring = replace(found, key=known.key)
    check = comparison.entry(Golden("", {}, (known,)), ignoring, "onnxruntime", {})
    products = first_product(climbs, old, new, way)
    token = first_token(climbs.outcome(old, way).logits, climbs.outcome(new, way).logits)
    assert check.verdict is (Verdict.DIFFERENT if products or token else Verdict.EXACT)
    if check.verdict is Verdict.DIFFERENT:
        assert absent.detail == start + check.detail
        assert check.detail.startswith("kernel: ")
        assert ("no product of a matrix" in check.detail) == (products is None)
        assert products is None or f"first {products} on unchanged weights" in check.detail
        assert check.detail.endswith(f"logits from prompt {token[0]}, token {token[1]}" if token else "logits equal")


def first_product(climbs: Climbs, old: str, new: str, way: Configuration) -> str | None:
    pairs = zip(climbs.products(old, way), climbs.products(new, way), strict=True)
    return next((f"{tensor} ({title})," for (title, tensor, a), (_, _, b) in pairs if compare_bits(a, b).any()), None)


def first_token(old: list[Floats], new: list[Floats]) -> tuple[int, int] | None:
    rows = (
        (prompt, int(token))
        for prompt, (a, b) in enumerate(zip(old, new, strict=True))
        for token in np.flatnonzero(compare_bits(a, b).any(-1))
    )
    return next(rows, None)


@pytest.mark.skipif("avx512f" not in machine(), reason="which kernels a version changed depends on the processor")
@each_way
def test_what_these_upgrades_changed(way: Configuration, climbs: Climbs) -> None:
    """1.24.4 to 1.31.1: other bits, and not in the products of matrices; 1.31.1 to 1.32.0: none."""
    entries = {name: climbs.entry(name, way) for name in VERSIONS}
    assert entries[OLD].layers == entries[HERE].layers == entries[NEW].layers
    assert entries[OLD].logits != entries[HERE].logits == entries[NEW].logits


def test_the_kernels_of_two_configurations_are_told_apart(climbs: Climbs) -> None:
    """Every product and every token, or two builds' kernels could be taken for one."""
    _, one, four = EVERYDAY
    found = replace(climbs.entry(HERE, one), key=climbs.entry(HERE, four).key)
    check = comparison.entry(Golden("", {}, (climbs.entry(HERE, four),)), found, "onnxruntime", {})
    tensors = len(found.layers["8 rows"])
    assert check.detail == (
        f"kernel: {2 * tensors} products, first {min(found.layers['8 rows'])} (8 rows), on unchanged weights; "
        "logits from prompt 0, token 0"
    )
    assert check.differing == 2 * tensors + sum(len(row) for row in found.logits)
