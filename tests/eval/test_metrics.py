"""The metrics themselves: one loss for all runtimes, held against PyTorch's; windows that count every token once."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from edgeqaf import metrics
from edgeqaf.data import IGNORED, Example, tokenize
from edgeqaf.errors import Refused, UsageError
from edgeqaf.material import chosen, context_of, prepare, windows
from edgeqaf.tokenizer import Tokenizer

FLOAT32_SUMS = 1e-6  # relative: cross_entropy adds exponentials in float32, ours in float64; 2e-7 was measured
FLOAT64_SUMS = 1e-14  # relative: both in float64, in another order


def relative(a, b):
    return abs(a - b) / abs(b)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_loss_is_cross_entropy(scale):
    rng = np.random.default_rng(1)
    logits = (scale * rng.standard_normal((150, 4096))).astype(np.float32)
    targets = rng.integers(0, 4096, 150)
    targets[::7] = IGNORED
    found = metrics.losses(logits, targets.tolist())
    assert len(found.nats) == int((targets != IGNORED).sum())
    for dtype, bound in ((torch.float32, FLOAT32_SUMS), (torch.float64, FLOAT64_SUMS)):
        theirs = cross_entropy(torch.from_numpy(logits).to(dtype), torch.from_numpy(targets), ignore_index=IGNORED)
        assert relative(found.nats.mean(), theirs.item()) < bound


def test_the_loss_of_a_model_is_the_one_it_is_trained_on(torch_subject, examples, tiny_base):
    """Labels shift as transformers shifts them; the mean is over tokens."""
    from edgeqaf import checkpoint
    from edgeqaf.modeling import build

    folder = checkpoint.load(tiny_base)
    model = build(folder.config, folder.tensors)
    total, count = 0.0, 0
    for example in examples:
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([example.ids]), labels=torch.tensor([example.labels])).loss
        n = sum(label != IGNORED for label in example.labels[1:])
        total, count = total + loss.item() * n, count + n
    found = metrics.of_losses(list(torch_subject.losses(examples)))
    assert found["target_tokens"] == count
    assert relative(found["loss"], total / count) < FLOAT32_SUMS
    assert found["perplexity"] == math.exp(found["loss"])


def test_extreme_logits_lose_nothing():
    logits = np.array([[0, -1e4, -2e38], [3e38, 0, 0], [5, 5, 5]], np.float32)
    found = metrics.losses(logits, [1, 0, 2])
    assert found.nats.tolist() == [1e4, 0.0, math.log(3)]
    assert not found.greedy
    assert metrics.losses(logits, [0, 0, 0]).greedy  # of equal tokens the first is taken, as runtimes do
    assert not metrics.losses(logits, [IGNORED, IGNORED, 1]).greedy


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused_by_place(value):
    logits = np.zeros((3, 5), np.float32)
    logits[1, 3] = value
    with np.errstate(invalid="ignore"), pytest.raises(Refused, match="loss of token 4 after position 1 is nan"):
        metrics.losses(logits, [0, 4, 0])


@pytest.mark.parametrize("token", [7, -1])
def test_a_target_outside_the_vocabulary_is_refused(token):
    with pytest.raises(Refused, match=f"token {token} is outside the vocabulary of 7"):
        metrics.losses(np.zeros((2, 7), np.float32), [0, token])


def test_choices_of_one_token_share_a_forward():
    choices = [Example([1, 2, 3, letter], [IGNORED] * 3 + [letter]) for letter in (7, 8, 9)]
    other = Example([1, 2, 4, 7], [IGNORED] * 3 + [7])
    found = list(metrics.forwards([*choices, other, choices[0]]))
    assert [ids for ids, _ in found] == [[1, 2, 3], [1, 2, 4], [1, 2, 3]]
    assert [len(targets) for _, targets in found] == [3, 1, 1]
    assert found[0][1] == [[IGNORED, IGNORED, letter] for letter in (7, 8, 9)]


def test_a_perplexity_beyond_float64_is_none():
    huge = metrics.Losses(np.array([2000.0]), False)
    assert metrics.of_losses([huge])["perplexity"] is None
    assert metrics.of_losses([huge])["loss"] == 2000.0


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 60), st.integers(2, 20), st.integers(1, 20))
def test_overlapping_windows_count_every_token_once(length, window, stride):
    stride = min(stride, window - 1) or 1
    stream = list(range(100, 100 + length))
    found = list(windows(stream, window, stride))
    counted = [label for example in found for label in example.labels[1:] if label != IGNORED]
    assert counted == stream[1:]
    for example in found[1:]:
        first = next(i for i, label in enumerate(example.labels) if label != IGNORED)
        assert first >= window - stride
    assert max(len(example.ids) for example in found) <= window


def test_windows_side_by_side_are_those_of_training(tiny_base):
    tokenizer = Tokenizer(tiny_base)
    rows = [{"text": "Once upon a time there was a fox. " * n} for n in (20, 1, 30)]
    ready = prepare(rows, tokenizer, ["loss"], 32)
    assert ready.examples == tokenize(rows, tokenizer, 32)[0]
    tokens = sum(len(tokenizer.encode(row["text"], prompt=True)) + 1 for row in rows)
    assert ready.tokens_per_byte == tokens / sum(len(row["text"].encode()) for row in rows)
    assert metrics.of_losses([metrics.Losses(np.array([math.log(2)] * 3), True)], 0.25)["bits_per_byte"] == 0.25


def test_a_conversation_that_the_template_rewrites_is_several_sequences(tiny_base, tmp_path):
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: "
        "{{ m.content if loop.last or m.role == 'user' else m.content[:3] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    turns = [("user", "Where is the fox?"), ("assistant", "In the wood."), ("user", "And now?"), ("assistant", "Home.")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    ready = prepare([row], Tokenizer(folder), ["loss"], 64)
    assert len(ready.examples) == 2
    assert ready.examples == tokenize([row], Tokenizer(folder), 64)[0]
    with pytest.raises(Refused, match=r"row 2: .* has no chat template"):
        prepare([{"prompt": "a", "completion": "b"}, row], Tokenizer(tiny_base), ["loss"], 64)


def lcs(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    pytest.importorskip("rouge_score", reason="rouge-score is not installed: pip install 'edgeqaf[eval]'")
    pairs = [
        ("the cat sat on the mat", "the cat on a mat"),
        ("open the window", "close the door"),
        ("one two three", "one two three"),
        ("alpha beta", "gamma"),
    ]
    expected = 0.0
    for want, got in pairs:
        common = lcs(want.split(), got.split())
        precision, recall = common / len(got.split()), common / len(want.split())
        expected += 2 * precision * recall / (precision + recall) / len(pairs) if common else 0.0
    assert relative(metrics.rouge_l(*zip(*pairs, strict=True)), expected) < FLOAT64_SUMS
    assert metrics.of_answers(["Lamp on"], ["lamp,  ON!"], ["rouge", "exact-match"]) == {
        "matched": 0, "exact_match": 0.0, "rouge_l": 1.0,
    }  # fmt: skip
    with pytest.raises(Refused, match="row 2: ROUGE-L sees no word in the expected answer 'χρώμα'"):
        metrics.rouge_l(["a", "χρώμα"], ["a", "χρώμα"])


def test_the_default_metric_follows_the_rows():
    pair, text = {"prompt": "a", "completion": "b"}, {"text": "a b"}
    assert chosen(None, [pair]) == ["exact-match"]
    assert chosen(None, [text]) == chosen(None, [pair, text]) == ["perplexity"]
    assert chosen("Loss, exact_match", [pair]) == ["loss", "exact-match"]
    with pytest.raises(UsageError, match="unknown metric 'bleu'"):
        chosen("loss,bleu", [pair])


@pytest.mark.parametrize(
    ("rows", "metric", "error", "says"),
    [
        ([{"prompt": "a", "completion": "b"}, {"prompt": "word " * 40, "completion": "b"}], "loss", Refused,
         r"row 2 is \d+ tokens long, and a window 16"),
        ([{"prompt": "a", "completion": "b"}, {"text": "c"}], "exact-match", Refused, "row 2 is plain text"),
        ([{"text": "c"}], "rouge", Refused, "no row has a prompt and a completion"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_scored_is_refused_by_number(rows, metric, error, says, tiny_base):
    with pytest.raises(error, match=says):
        prepare(rows, Tokenizer(tiny_base), [metric], 16)


def test_windows_that_cannot_be_are_refused(tiny_base):
    tokenizer, rows = Tokenizer(tiny_base), [{"text": "a b c"}]
    context = context_of(tiny_base)
    with pytest.raises(UsageError, match=f"--max-length {context + 1} is beyond the model's context of {context}"):
        prepare(rows, tokenizer, ["loss"], context + 1)
    with pytest.raises(UsageError, match="--stride 17 skips text between windows of 16"):
        prepare(rows, tokenizer, ["loss"], 16, 17)
