"""Every runtime's losses and answers through one function, close to PyTorch's by a stated bound."""

import multiprocessing

import pytest

from edgeqaf import metrics, plugins
from edgeqaf.data import IGNORED, Example
from edgeqaf.errors import Refused, UsageError
from edgeqaf.scoring import score
from runtime_tests import ladder

# Relative difference of the mean loss to PyTorch's, over the same integers.
FLOAT32_ORDER = 1e-6  # the same products, summed in another order; 2e-9 was measured
INT8_ACTIVATIONS = 1e-3  # kernels that round activations to 8 bits per block; 2e-4 was measured


def configurations() -> list[tuple[str, str]]:
    """(runtime, configuration) of every runtime in the registry that runs everyday artifacts."""
    found = {name: plugins.find("runtimes", name).configurations for name in ladder.at_home()}
    return [(name, c.name) for name in found for c in found[name] if not c.program]


RUNTIMES = list(dict.fromkeys(name for name, _ in configurations()))


def bound(runtime, configuration):
    found = {c.name: c for c in plugins.find("runtimes", runtime).configurations}
    return INT8_ACTIVATIONS if found[configuration].int8_activations else FLOAT32_ORDER


@pytest.mark.parametrize(("runtime", "configuration"), configurations())
def test_the_loss_of_every_runtime_is_close_to_the_loss_in_torch(
    runtime, configuration, artifact, torch_subject, examples
):
    expected = metrics.of_losses(list(torch_subject.losses(examples)))
    found = metrics.of_losses(list(artifact(runtime, configuration).losses(examples)))
    assert found["target_tokens"] == expected["target_tokens"]
    difference = abs(found["loss"] - expected["loss"]) / expected["loss"]
    assert difference < bound(runtime, configuration), difference


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_function_scores_every_subject(runtime, artifact, examples, questions):
    pytest.importorskip("rouge_score", reason="rouge-score is not installed: pip install 'edgeqaf[eval]'")
    found = score(artifact(runtime), metrics.METRICS, examples=examples, tasks=questions)
    assert set(found) == {"target_tokens", "loss", "perplexity", "matched", "exact_match", "rouge_l", "answers"}
    assert len(found["answers"]) == len(questions)
    assert found["exact_match"] == found["matched"] / len(questions)
    assert 0 <= found["rouge_l"] <= 1


def test_batches_change_nothing_but_the_order_of_sums(torch_subject, examples):
    together = list(torch_subject.losses(examples))
    alone = [next(torch_subject.losses([example])) for example in examples]
    for a, b in zip(together, alone, strict=True):
        assert len(a.nats) == len(b.nats)
        assert abs(a.nats.sum() - b.nats.sum()) / b.nats.sum() < FLOAT32_ORDER


def test_nothing_to_score_is_refused(torch_subject, examples):
    with pytest.raises(UsageError, match="unknown metric 'bleu'"):
        score(torch_subject, ["bleu"], examples=examples)
    with pytest.raises(Refused, match="no token to take the loss of"):
        score(torch_subject, ["loss"])
    with pytest.raises(Refused, match="no row has an answer"):
        score(torch_subject, ["exact-match"], examples=examples)
    without = Example([5, 6, 7], [5, IGNORED, IGNORED])  # the first token has nothing before it
    with pytest.raises(Refused, match="example 2 has no target token"):
        score(torch_subject, ["loss"], examples=[examples[0], without])


@pytest.mark.parametrize("runtime", [n for n in RUNTIMES if plugins.find("runtimes", n).reads])
def test_a_runtime_that_dies_is_named(runtime, artifact, examples):
    """Its process is killed after the first of many losses: more than a pipe holds."""
    many = artifact(runtime).losses(examples * 200)
    assert next(many).nats.size
    (process,) = multiprocessing.active_children()
    process.kill()
    with pytest.raises(Refused, match=rf"{runtime}: the runtime's process died \(exit -9\)"):
        list(many)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_token_of_another_model_is_refused(runtime, artifact):
    """Each engine says so in its own way; what reaches the user names the token or the engine's reason."""
    with pytest.raises(Refused, match=r"40960|out of range"):
        list(artifact(runtime).losses([Example([1, 40960, 2], [1, IGNORED, 2])]))
