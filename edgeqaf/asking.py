"""What `edgeqaf eval` asks of a runtime, in a process that loads this runtime and no other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edgeqaf import metrics, plugins
from edgeqaf.data import Example
from edgeqaf.errors import EdgeqafError, Refused
from edgeqaf.protocols import Artifact, Configuration, Runtime, RuntimeOptions, Session


def generate(name: str, artifact: Artifact, configuration: Configuration, options: RuntimeOptions,
             prompts: Sequence[str], limit: int) -> Iterator[str]:  # fmt: skip
    """The text that one runtime generates from an artifact for each prompt, in order."""
    with _opened(name, artifact, configuration, options) as session:
        for ids in session.generate([session.encode(prompt) for prompt in prompts], limit):
            yield session.decode(ids)


def losses(name: str, artifact: Artifact, configuration: Configuration, options: RuntimeOptions,
           examples: Sequence[Example]) -> Iterator[metrics.Losses]:  # fmt: skip
    """The losses of each example, from one runtime's own logits, in order."""
    with _opened(name, artifact, configuration, options) as session:
        for ids, targets in metrics.forwards(examples):
            logits = session.logits(ids)
            yield from (metrics.losses(logits, one) for one in targets)


@contextmanager
def _opened(name: str, artifact: Artifact, configuration: Configuration, options: RuntimeOptions) -> Iterator[Session]:
    """A session whose engine's own errors, of whatever type, become Refused with the runtime's name."""
    runtime: Runtime = plugins.find("runtimes", name)
    try:
        with runtime.open(artifact, configuration, options) as session:
            yield session
    except EdgeqafError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise Refused(
            f"{name} fails on {artifact.path}: {type(error).__name__}: {said}", "verify the artifact: edgeqaf verify"
        ) from None
