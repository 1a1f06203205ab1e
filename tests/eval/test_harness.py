"""lm-eval's tasks: our model class gives the numbers of lm-eval's own, and every subject can answer."""

import json
import socket
from pathlib import Path

import pytest

from edgeqaf import checkpoint
from edgeqaf.errors import Refused, UsageError
from edgeqaf.modeling import build

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'edgeqaf[eval]'")
pytestmark = pytest.mark.usefixtures("quiet_cache", "offline")

EVERYDAY = Path(__file__).resolve().parents[2] / "examples" / "tasks" / "everyday.yaml"
FLOAT32 = 2e-6  # relative: float32 sums in another order, and lm-eval's log-softmax in float32; 2e-7 was measured
STORY = "The fox went to the river. It drank, and then it went home to its den. " * 12

TASKS = {
    "ends": """
        output_type: multiple_choice
        doc_to_text: "{{question}}"
        doc_to_choice: ["yes", "no thank you", "maybe"]
        doc_to_target: 1
        metric_list: [{metric: acc}, {metric: acc_norm}]""",
    "texts": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{story}}"
        metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]""",
    "answers": """
        output_type: generate_until
        doc_to_text: "{{question}}"
        doc_to_target: "{{answer}}"
        generation_kwargs: {until: [" th", "e"], max_gen_toks: 24, do_sample: false}
        metric_list: [{metric: exact_match}]""",
}

# "The" + "y" is one token of storyteller's: nothing is left of the choice once the context is taken off
JOINED = f"target_delimiter: ''{TASKS['ends'].replace('{{question}}', 'The').replace('yes', 'y')}"


@pytest.fixture
def offline(monkeypatch):
    def refuse(*address):
        raise AssertionError(f"a connection to {address[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write(folder: Path, name: str, text: str | None = None) -> Path:
    """A task file of `TASKS`, and its data, in ``folder``."""
    rows = [{"question": f"Say {word}.", "answer": word, "story": f"{word}. {STORY}"} for word in ("one", "two", "six")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    lines = [line.strip() for line in (TASKS[name] if text is None else text).strip().splitlines()]
    head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: rows.jsonl}}}}\ntest_split: test\n"
    (folder / f"{name}.yaml").write_text(head + "\n".join(lines) + "\n", "utf-8")
    return folder / f"{name}.yaml"


@pytest.fixture(scope="module")
def theirs(tiny_base):
    """lm-eval's own model class over the same weights."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    folder = checkpoint.load(tiny_base)
    model = build(folder.config, folder.tensors)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base, local_files_only=True)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=100)


def by(model, place):
    """What lm-eval finds on one task file with ``model``, an LM of its own or of ours."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    from edgeqaf.harness.tasks import load, set_shots

    loaded = TaskManager(include_defaults=False).load(load(place))
    for task in loaded["tasks"].values():
        set_shots(task, None)
    found = evaluate(model, loaded, bootstrap_iters=0)
    (name,) = found["results"]
    return found["results"][name], [sample["filtered_resps"] for sample in found["samples"][name]]


@pytest.mark.parametrize("name", ["everyday", *TASKS])
def test_our_model_class_gives_the_numbers_of_lm_evals_own(name, theirs, torch_subject, tmp_path):
    from edgeqaf.harness import SubjectLM

    place = EVERYDAY if name == "everyday" else write(tmp_path, name)
    (expected, a), (found, b) = by(theirs, place), by(SubjectLM(torch_subject, 100), place)
    assert len(a) == len(b) > 0
    if name == "answers":
        assert a == b
        assert any(text for row in a for text in row)
        assert not any("e" in text for row in a for text in row)
        return
    pairs = [(x, y) for row, other in zip(a, b, strict=True) for x, y in zip(row, other, strict=True)]
    if name == "texts":
        assert all(abs(x - y) < FLOAT32 * abs(x) for x, y in pairs)
        assert abs(expected["bits_per_byte,none"] - found["bits_per_byte,none"]) < FLOAT32 * found["bits_per_byte,none"]
        return
    assert all(abs(x[0] - y[0]) < FLOAT32 * abs(x[0]) and bool(x[1]) == y[1] for x, y in pairs)
    assert {k: v for k, v in expected.items() if k.startswith("acc")} == {
        k: v for k, v in found.items() if k.startswith("acc")
    }


@pytest.mark.parametrize("runtime", ["torch_cpu", "onnxruntime", "llama_cpp"])
def test_an_artifact_answers_every_kind_of_task(runtime, artifact, tmp_path):
    from edgeqaf.harness import evaluate

    for name in TASKS:
        write(tmp_path, name)
    found = evaluate(artifact(runtime), [tmp_path, EVERYDAY], rows=2, max_length=160)
    assert set(found["tasks"]) == {"ends", "texts", "answers", "everyday"}
    assert {values["rows"] for values in found["tasks"].values()} == {2}
    assert 0 <= found["tasks"]["everyday"]["acc"] <= 1
    assert found["tasks"]["texts"]["bits_per_byte"] > 0
    assert found["truncated"] == 0
    assert [len(rows) for rows in found["samples"].values()] == [2] * 4
    assert json.loads(json.dumps(found)) == found


def test_a_group_is_scored_with_its_tasks(torch_subject, tmp_path):
    from edgeqaf.harness import evaluate

    write(tmp_path, "ends")
    write(tmp_path, "other", TASKS["ends"])
    group = tmp_path / "both.yaml"
    group.write_text("group: both\ntask: [ends, other]\naggregate_metric_list: [{metric: acc}]\n")
    for place in (group, tmp_path):
        found = evaluate(torch_subject, [place])
        assert set(found["tasks"]) == {"ends", "other"}
        assert found["groups"] == {"both": {"acc": found["tasks"]["ends"]["acc"]}}


def test_the_standard_error_is_that_of_a_mean(torch_subject):
    from edgeqaf.harness import evaluate

    found = evaluate(torch_subject, [EVERYDAY])
    values = [row["acc"] for row in found["samples"]["everyday"]]
    mean, n = sum(values) / len(values), len(values)
    variance = sum((v - mean) ** 2 for v in values) / (n - 1)
    assert found["tasks"]["everyday"]["acc"] == mean
    assert abs(found["tasks"]["everyday"]["acc_stderr"] - (variance / n) ** 0.5) < 1e-15


def test_a_context_longer_than_the_window_loses_its_beginning_and_is_counted(torch_subject, tmp_path):
    from edgeqaf.harness import evaluate

    long = TASKS["ends"].replace("{{question}}", "{{story}}")
    found = evaluate(torch_subject, [write(tmp_path, "long", long)], max_length=64)
    assert found["truncated"] == 9  # three rows of three choices


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TASKS["answers"].replace("do_sample: false", "do_sample: true, temperature: 0.7"), "'temperature': 0.7"),
        (TASKS["answers"].replace("24", "90"), r"a prompt of \d+ tokens and 90 new ones are more than a window of 80"),
        (JOINED, "likelihood of 0 tokens"),
        (TASKS["ends"].replace("no thank you", "no thank you, " * 50), r"likelihood of \d+ tokens; a window holds 80"),
        (TASKS["ends"].replace("{{question}}", "{{qestion}}"), "'qestion' is undefined"),
        (TASKS["ends"].replace("metric: acc}", "metric: no such metric}"), "no such metric not found"),
        ("output_type: [", "odd.yaml: ParserError"),
        ("dataset_kwargs: {data_files: {test: absent.jsonl}}", "absent.jsonl"),
        ("process_docs: !function nowhere.at_all", "nowhere"),
    ],
)  # fmt: skip
def test_a_task_that_does_not_work_is_refused_with_its_reason(text, says, torch_subject, tmp_path):
    from edgeqaf.harness import evaluate

    with pytest.raises(Refused, match=says):
        evaluate(torch_subject, [write(tmp_path, "odd", text)], max_length=80)


def test_what_is_no_task_is_refused(torch_subject, tmp_path):
    from edgeqaf.harness import SubjectLM, evaluate

    with pytest.raises(Refused, match="hellaswag does not exist"):
        evaluate(torch_subject, [Path("hellaswag")])
    (tmp_path / "fragment.yaml").write_text("output_type: multiple_choice\n")
    for place in (tmp_path, tmp_path / "fragment.yaml"):
        with pytest.raises(Refused, match=f"{place} holds no task"):
            evaluate(torch_subject, [place])
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(Refused, match=r"list\.yaml: ValueError: Expected YAML dict"):
        evaluate(torch_subject, [tmp_path])
    with pytest.raises(UsageError, match="--max-length 100000 is beyond the model's context of 1024"):
        SubjectLM(torch_subject, 100_000)
