"""A tiny model as every kind of subject: the base folder in PyTorch, its artifacts in their runtimes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edgeqaf import checkpoint, dist, plugins
from edgeqaf.data import Example, Task, tasks, tokenize
from edgeqaf.protocols import RuntimeOptions
from edgeqaf.scoring import Subject, subject
from edgeqaf.tokenizer import Tokenizer

ROWS = [
    {"prompt": f"Say number {i}" + ", please" * (i % 4), "completion": f"number: {i}" + " and more" * (i % 3)}
    for i in range(12)
]


@pytest.fixture(scope="session")
def tiny_dist(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_dist") / "dist"
    dist.export(checkpoint.load(tiny_base), ["gguf", "onnx"], folder)
    return folder


@pytest.fixture(scope="session")
def torch_subject(tiny_base: Path) -> Subject:
    return subject(
        tiny_base, base=None, requantize=False, runtime=None, configuration=None, options=RuntimeOptions(threads=1)
    )


@pytest.fixture(scope="session")
def artifact(tiny_dist: Path) -> Callable[..., Subject]:
    """The subject of one runtime, by default in the configuration that users get; skips where it is absent."""

    def opened(runtime: str, configuration: str | None = None) -> Subject:
        options = RuntimeOptions(threads=1)
        available = plugins.find("runtimes", runtime).availability(options)
        if available.version is None:
            pytest.skip(f"{runtime} is absent: {available.reason}")
        return subject(
            tiny_dist, base=None, requantize=False, runtime=runtime, configuration=configuration, options=options
        )

    return opened


@pytest.fixture(scope="session")
def examples(tiny_base: Path) -> list[Example]:
    """Twelve rows as training tokenizes them, of differing lengths."""
    return tokenize(ROWS, Tokenizer(tiny_base), 64)[0]


@pytest.fixture(scope="session")
def questions(tiny_base: Path) -> list[Task]:
    return tasks(ROWS, Tokenizer(tiny_base))


@pytest.fixture
def quiet_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The datasets library converts data files in a folder of this test, not in the user's."""
    datasets = pytest.importorskip("datasets", reason="lm-eval is not installed: pip install 'edgeqaf[eval]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
