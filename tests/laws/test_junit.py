"""A report as JUnit XML: every check is a case, what fails is a failure, and any text can be in it."""

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from edgeqaf import junit
from edgeqaf.errors import UsageError
from edgeqaf.report import Check, Difference, Verdict, VerificationReport

FIRST = Difference("model.layers.0.mlp.up_proj.weight", (1, 2), "0.5", "<1.0>")
CHECKS = {
    Verdict.EXACT: Check("R1", "torch_cpu float32 on gguf", Verdict.EXACT, 4, 256, detail="torch"),
    Verdict.BOUNDED: Check("R4", "llama_cpp plain on gguf", Verdict.BOUNDED, 4, 999, 7, "logits", "8-bit activations"),
    Verdict.DIFFERENT: Check("R2", "a & b", Verdict.DIFFERENT, 4, 256, 3, first=FIRST, wrong=(FIRST.tensor, "other")),
    Verdict.REFUSED: Check("R1", "x", Verdict.REFUSED, detail="\x1b[31mno\x1b[0m \ud800 \ufffe it died"),
    Verdict.ABSENT: Check("golden", "onnxruntime off on onnx", Verdict.ABSENT, detail="no golden for build '1.32.0'"),
}
ELEMENT = {
    Verdict.EXACT: "system-out", Verdict.BOUNDED: "system-out", Verdict.DIFFERENT: "failure",
    Verdict.REFUSED: "failure", Verdict.ABSENT: "skipped",
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> ET.Element:
    junit.write(VerificationReport(tuple(CHECKS.values())), tmp_path / "j.xml", 1.5)
    return ET.parse(tmp_path / "j.xml").getroot()


def test_every_verdict_has_its_element() -> None:
    assert set(ELEMENT) == set(CHECKS) == set(Verdict)


def test_every_check_is_a_case_and_counts_are_those_of_the_cases(root: ET.Element) -> None:
    cases = list(root.iter("testcase"))
    assert [(c.get("classname"), c.get("name")) for c in cases] == [
        (f"edgeqaf.{c.rung}", c.subject) for c in CHECKS.values()
    ]
    assert [[child.tag for child in case] for case in cases] == [[ELEMENT[verdict]] for verdict in CHECKS]
    counts = Counter(child.tag for case in cases for child in case)
    shared = {
        "name": "edgeqaf verify", "tests": str(len(cases)), "failures": str(counts["failure"]), "errors": "0",
        "time": "1.500",
    }  # fmt: skip
    assert dict(root.attrib) == shared
    assert [dict(suite.attrib) for suite in root] == [{**shared, "skipped": str(counts["skipped"])}]


def test_a_failure_names_the_first_difference_and_every_tensor(root: ET.Element) -> None:
    different, refused = root.iter("failure")
    assert different.get("type") == "different"
    assert different.get("message") == f"3 differ: {FIRST}"
    assert (different.text or "").split("\n") == [f"3 differ: {FIRST}", FIRST.tensor, "other"]
    assert refused.get("message") == "\ufffd[31mno\ufffd[0m \ufffd \ufffd it died"


def test_an_absence_says_what_is_absent(root: ET.Element) -> None:
    (skipped,) = root.iter("skipped")
    assert skipped.get("message") == skipped.text == "no golden for build '1.32.0'"


def test_it_replaces_reports_of_its_kind_only(tmp_path: Path) -> None:
    report, path = VerificationReport(tuple(CHECKS.values())), tmp_path / "j.xml"
    junit.claim(path)
    junit.write(report, path, 1)
    junit.claim(path)
    path.write_text("<testsuites/>", "utf-8")
    for there in (path, tmp_path):
        with pytest.raises(UsageError, match="is there and no earlier JUnit report"):
            junit.claim(there)
