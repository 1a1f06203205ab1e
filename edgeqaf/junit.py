"""A verification report as JUnit XML, which CI services show: a check is a test case.

Different and refused are failures, absent is skipped; what was found otherwise is the case's output. The elements and
attributes are those that readers at GitHub and GitLab take, and Jenkins' schema (junit-10.xsd) allows.
"""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

from edgeqaf.errors import UsageError
from edgeqaf.report import Check, Verdict, VerificationReport
from edgeqaf.staging import require_new, staged

NAME = "edgeqaf verify"
START = f"<?xml version='1.0' encoding='utf-8'?>\n<testsuites name=\"{NAME}\"".encode()
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, 2.2 Characters


def claim(path: Path) -> None:
    """Refuse, before any work, to replace anything but an earlier report of this kind."""
    require_new(path, force=True)
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(START)):
        raise UsageError(f"{path} is there and no earlier JUnit report", "choose another output, or remove it yourself")


def write(report: VerificationReport, path: Path, seconds: float) -> None:
    """Write a report, all or nothing. seconds: that the checks took together; for one of them there is no time."""
    about = {
        "name": NAME, "tests": str(len(report.checks)), "failures": str(len(report.failures)), "errors": "0",
        "time": f"{seconds:.3f}",
    }  # fmt: skip
    root = ET.Element("testsuites", about)
    suite = ET.SubElement(root, "testsuite", about, skipped=str(len(report.absent)))
    for check in report.checks:
        _add(suite, check)
    ET.indent(root, " ")
    with staged(path, force=True) as part:
        ET.ElementTree(root).write(part, "utf-8", xml_declaration=True)


def _add(suite: ET.Element, check: Check) -> None:
    case = ET.SubElement(suite, "testcase", classname=f"edgeqaf.{check.rung}", name=_text(check.subject), time="0")
    said = _text(check.reason)
    if check.verdict is Verdict.ABSENT:
        ET.SubElement(case, "skipped", message=said).text = said  # GitLab shows the text, others the attribute
    elif check.verdict in (Verdict.DIFFERENT, Verdict.REFUSED):
        failure = ET.SubElement(case, "failure", type=check.verdict.value, message=said)
        failure.text = _text("\n".join([check.reason, *check.wrong]))
    else:
        compared = f", {check.compared:,} {check.unit}" if check.compared else ""
        ET.SubElement(case, "system-out").text = f"{check.verdict.value}{_text(compared)}: {said}"


def _text(text: str) -> str:
    """What XML cannot hold, such as a terminal's escape codes in an engine's message, is replaced."""
    return NO_XML.sub("\ufffd", text)
