"""verify --record, --check and --junit, as a CI runs them: what changed is named, and nothing unknown ever passes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from damage import edit, flip

from edgeqaf import checkpoint
from edgeqaf.checkpoint import QModel

Copy = Callable[[Path], Path]
UP = "model.layers.1.mlp.up_proj.weight"
ALL = {
    "torch_cpu float32 on gguf", "llama_cpp plain on gguf", "llama_cpp repack on gguf", "onnxruntime off on onnx",
    "onnxruntime fused level 1 on onnx", "onnxruntime fused level 4 on onnx",
}  # fmt: skip
QUICK = ("--runtime", "onnxruntime,llama.cpp", "--require", "golden")


def goldens(said: Any) -> dict[str, dict[str, Any]]:
    return {check["subject"]: check for check in said["checks"] if check["rung"] == "golden"}


def verdicts(said: Any) -> dict[str, str]:
    return {subject: check["verdict"] for subject, check in goldens(said).items()}


@pytest.fixture(scope="session")
def golden(road: Any, command: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every runtime of this environment, recorded; read-only."""
    folder = tmp_path_factory.mktemp("golden")
    result = command("verify", road.dist, "--record", folder / "golden.json", "-o", folder / "verify.json")
    assert (result.code, result.err) == (0, "")
    assert "golden.json: 6 goldens recorded; next: edgeqaf verify" in result.out
    return folder / "golden.json"


@pytest.fixture
def dist(road: Any, copy: Copy) -> Path:
    return copy(road.dist)


def exported(model: QModel, shell: Any, *flags: object) -> Path:
    checkpoint.save(model, Path("other"), kind="merged", parent=None, options={})
    shell.ok("export", "other", "--format", "gguf,onnx", "-o", "dist of other", *flags)
    return Path("dist of other")


def test_what_was_recorded_passes(shell: Any, dist: Path, golden: Path) -> None:
    said = shell.json("verify", dist, "--check", golden, "--require", "golden,R2", "--junit", "junit.xml")
    assert verdicts(said) == dict.fromkeys({"weights", *ALL}, "exact")
    assert all(check["compared"] and not check["differing"] for check in goldens(said).values())
    (root,) = ET.parse("junit.xml").getroot()
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == (str(len(said["checks"])), "0", "0")
    assert {c.get("name") for c in root.iter("testcase") if c.get("classname") == "edgeqaf.golden"} == {"weights", *ALL}
    shell.ok("report", dist, "-o", "page.html")
    assert "golden" in Path("page.html").read_text("utf-8")


def test_the_file_is_the_same_whenever_and_wherever_it_is_recorded(shell: Any, dist: Path, golden: Path) -> None:
    """Some runtimes after the others, in another folder, and one again over what is there."""
    for names in ("onnxruntime,llama.cpp", "llama.cpp,torch"):
        shell.ok("verify", dist, "--runtime", names, "--record", "here.json")
    assert Path("here.json").read_bytes() == golden.read_bytes()
    assert str(shell.folder) not in Path("here.json").read_text("utf-8")
    assert json.loads(golden.read_text("utf-8"))["root"] == json.loads((dist / "edgeqaf.json").read_text())["root"]


def test_other_circumstances_have_no_golden(shell: Any, dist: Path, golden: Path) -> None:
    line = ("verify", dist, "--check", golden, "--threads", 2, "--runtime", "onnxruntime", "--require", "golden")
    result = shell.run(*line, "--junit", "junit.xml", "--json")
    assert result.code == 6
    said = result.json()
    found = goldens(said)
    assert verdicts(said) == {"weights": "exact"} | dict.fromkeys((s for s in ALL if "onnxruntime" in s), "absent")
    said_of_one = found["onnxruntime off on onnx"]["detail"]
    assert said_of_one.startswith("no golden for threads '2' (the nearest has '1'); held against it: ")
    assert "golden is required; onnxruntime off on onnx: no golden for threads '2'" in result.err
    assert [suite.get("skipped") for suite in ET.parse("junit.xml").getroot()] == ["3"]


def test_a_runtime_that_was_not_recorded_has_none(shell: Any, dist: Path) -> None:
    shell.ok("verify", dist, "--runtime", "llama.cpp", "--record", "llama.json")
    line = ("verify", dist, "--check", "llama.json", "--runtime", "onnxruntime,llama.cpp", "--require", "golden")
    result = shell.run(*line, "--json")
    assert result.code == 6
    found = goldens(result.json())
    assert found["llama_cpp plain on gguf"]["verdict"] == "exact"
    assert found["onnxruntime off on onnx"]["verdict"] == "absent"
    assert found["onnxruntime off on onnx"]["detail"] == "no golden for onnxruntime: there is one for llama_cpp"


def test_a_runtime_that_is_gone_is_missed(shell: Any, dist: Path, golden: Path) -> None:
    Path("empty").mkdir()
    line = ("verify", dist, "--check", golden, "--runtime", "llama.cpp", "--llama-lib", "empty", "--require", "golden")
    result = shell.run(*line, "--json")
    assert (verdicts(result.json()), result.code) == ({"weights": "exact"}, 6)


def test_a_changed_code_is_weights_and_names_its_tensor(shell: Any, road: Any, golden: Path) -> None:
    model = checkpoint.load(road.merged)
    codes = model.tensors[UP].codes.copy()
    codes[3, 5] ^= 1
    tensors = {name: model.tensors[name] for name in model.tensors} | {UP: model.tensors[UP].replace(codes=codes)}
    other = exported(QModel(model.config, tensors, model.folder), shell)
    result = shell.run("verify", other, "--check", golden, *QUICK, "--json", "--junit", "junit.xml")
    assert result.code == 4
    assert f"golden weights: {UP} not as in golden.json" in result.err
    assert "record it: edgeqaf verify DIST --record FILE --force" in result.err
    said = result.json()
    assert not said["passed"]
    for subject, check in goldens(said).items():
        assert (check["verdict"], check["wrong"], check["first"]["tensor"]) == ("different", [UP], UP), subject
        start = UP if subject == "weights" else f"weights: {UP}; logits from prompt 0, token "
        assert check["detail"].startswith(start), check["detail"]
        assert "kernel" not in check["detail"]
    failed = {c.get("name") for c in ET.parse("junit.xml").getroot().iter("testcase") if c.find("failure") is not None}
    assert failed == set(goldens(said))


@pytest.mark.parametrize("what", ["template", "vocabulary"])
def test_a_changed_tokenizer_file_is_named(what: str, shell: Any, road: Any, golden: Path, copy: Copy) -> None:
    """Two tokens change their ids, or the template changes, which no prompt of verify shows."""
    source = copy(road.merged)
    if what == "template":
        edit(source / "tokenizer_config.json", chat_template="{{ messages }}")
    else:
        swap_two_tokens(source / "tokenizer.json")
    model = checkpoint.load(source)
    other = exported(QModel(model.config, model.tensors, source), shell)
    result = shell.run("verify", other, "--check", golden, *QUICK, "--json")
    assert result.code == 4
    found = goldens(result.json())
    assert found.pop("weights")["verdict"] == "exact"
    for subject, check in found.items():
        assert check["verdict"] == "different", subject
        assert check["detail"].startswith("tokenizer or template: token"), check["detail"]
        assert "kernel" not in check["detail"]
        named = {"template": "tokenizer.chat_template" if "llama" in subject else "tokenizer_config.json",
                 "vocabulary": "tokenizer.ggml." if "llama" in subject else "tokenizer.json"}[what]  # fmt: skip
        assert named in check["detail"]
        same = "the prompts' token ids are equal; logits equal" in check["detail"]
        assert same == (what == "template")


def swap_two_tokens(file: Path) -> None:
    """The ids of "there" and "sea", which are in the first prompt."""
    tokenizer = json.loads(file.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    a, b = (next(t for t in vocabulary if t.strip("▁Ġ") == word) for word in ("there", "sea"))
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    file.write_text(json.dumps(tokenizer), "utf-8")


def test_another_program_is_told_from_another_kernel(shell: Any, road: Any, golden: Path) -> None:
    model = checkpoint.load(road.merged)
    other = exported(model, shell, "--form", "matmulnbits")
    result = shell.run("verify", other, "--check", golden, "--runtime", "onnxruntime", "--json")
    assert result.code == 4
    for subject, check in goldens(result.json()).items():
        if subject != "weights":
            assert check["detail"].startswith("program: model.onnx; "), check["detail"]


def test_a_changed_kernel_is_named_with_tensor_and_token(shell: Any, dist: Path, golden: Path) -> None:
    """What level 1 computed, under level 4's key: as if a build had other kernels and the same name."""
    content = json.loads(golden.read_text("utf-8"))
    own = {e["key"]["configuration"]: e for e in content["entries"] if e["key"]["runtime"] == "onnxruntime"}
    own["fused level 4"].update({k: own["fused level 1"][k] for k in ("layers", "logits")})
    Path("golden.json").write_text(json.dumps(content), "utf-8")
    result = shell.run("verify", dist, "--check", "golden.json", "--runtime", "onnxruntime", "--json")
    assert result.code == 4
    found = goldens(result.json())
    assert {s for s, c in found.items() if c["verdict"] != "exact"} == {"onnxruntime fused level 4 on onnx"}
    check = found["onnxruntime fused level 4 on onnx"]
    first = min(own["off"]["layers"]["8 rows"])
    assert check["detail"] == (
        f"kernel: 28 products, first {first} (8 rows), on unchanged weights; logits from prompt 0, token 0"
    )
    assert check["first"]["tensor"] == first
    assert check["first"]["expected"] == own["fused level 1"]["layers"]["8 rows"][first]


def test_damage_to_the_file_is_weights_and_not_kernel(shell: Any, dist: Path, golden: Path) -> None:
    flip(dist / "onnx" / "model.onnx.data", -1000)
    result = shell.run("verify", dist, "--check", golden, "--runtime", "onnxruntime", "--json")
    assert result.code == 4
    said = result.json()
    (wrong,) = next(c["wrong"] for c in said["checks"] if (c["rung"], c["subject"]) == ("R0", "onnx"))
    for subject, check in goldens(said).items():
        if subject != "weights":
            assert check["detail"].startswith(f"weights: {wrong}; logits from prompt 0, token "), check["detail"]


def test_only_what_passed_is_recorded(shell: Any, dist: Path) -> None:
    line = ("verify", dist, "--runtime", "llama.cpp", "--record", "golden.json")
    assert shell.run(*line, "--require", "onnxruntime").code == 6
    flip(dist / "model.gguf", -1000)
    assert shell.run(*line).code == 4
    assert not Path("golden.json").exists()


def test_nothing_is_recorded_where_nothing_climbed(shell: Any, dist: Path) -> None:
    Path("empty").mkdir()
    line = ("--runtime", "llama.cpp", "--llama-lib", "empty", "--record", "golden.json")
    result = shell.run("verify", dist, *line)
    assert result.code == 6
    assert "nothing to record in golden.json: no runtime was there" in result.err
    assert not Path("golden.json").exists()


def test_what_is_there_is_replaced_by_force_only(shell: Any, dist: Path, road: Any, golden: Path) -> None:
    content = json.loads(golden.read_text("utf-8"))
    for entry in content["entries"]:
        entry["logits"][0][0] = "f" * 16
    Path("golden.json").write_text(json.dumps(content), "utf-8")
    before = Path("golden.json").read_bytes()
    line = ("verify", dist, "--runtime", "llama.cpp", "--record", "golden.json")
    result = shell.run(*line)
    assert result.code == 2
    assert "golden.json has another golden for llama_cpp plain, xllamacpp " in result.err
    assert Path("golden.json").read_bytes() == before
    shell.ok(*line, "--force")
    kept = json.loads(Path("golden.json").read_text("utf-8"))["entries"]
    assert [e["key"]["runtime"] for e in kept if e["logits"][0][0] != "f" * 16] == ["llama_cpp"] * 2
    shell.ok("export", road.base, "--format", "gguf", "-o", "base")
    other = ("verify", "base", "--runtime", "llama.cpp", "--record", "golden.json")
    shell.refused(2, *other, says=f"golden.json is of root {content['root'][:12]}, this folder is ")
    shell.ok(*other, "--force")
    assert len(json.loads(Path("golden.json").read_text("utf-8"))["entries"]) == 2


def test_what_contradicts_itself_is_refused_before_any_work(shell: Any, dist: Path, golden: Path) -> None:
    Path("other.json").write_text("{}", "utf-8")
    Path("link.json").symlink_to(golden)
    for flags, code, says in [
        (("--record", "a.json", "--check", golden), 2, "--record and --check exclude each other"),
        (("--force",), 2, "--force is for --record"),
        (("--require", "golden"), 2, "--require golden needs a golden file"),
        (("--record", "a.json", "--require", "R2,Golden"), 2, "--require golden needs a golden file"),
        (("--check", "a.json"), 3, "a.json does not exist"),
        (("--check", "other.json"), 3, "other.json is None of format None, not 'golden' of format 1"),
        (("--record", "other.json"), 2, "other.json is there and no golden"),
        (("--record", "other.json", "--force"), 2, "other.json is there and no golden"),
        (("--record", "link.json"), 2, "link.json is a symbolic link"),
        (("--junit", "other.json"), 2, "other.json is there and no earlier JUnit report"),
    ]:
        shell.refused(code, "verify", dist, *flags, says=says)


def test_junit_tells_a_damaged_tensor(shell: Any, dist: Path) -> None:
    flip(dist / "model.gguf", -1000)
    line = ("verify", dist, "--runtime", "llama.cpp", "--junit", "junit.xml")
    assert shell.run(*line).code == 4
    root = ET.parse("junit.xml").getroot()
    failures = [case for case in root.iter("testcase") if case.find("failure") is not None]
    assert [(case.get("classname"), case.get("name")) for case in failures] == [
        ("edgeqaf.R0", "files"), ("edgeqaf.R0", "gguf"),
    ]  # fmt: skip
    assert float(root.get("time") or "nan") > 0


def test_an_upgraded_runtime_has_no_golden(shell: Any, dist: Path, places: Path) -> None:
    """ONNX Runtime 1.24.4, and then 1.32.0 under the same name; what that changed is told beside."""
    line = ("verify", dist, "--places", places, "--runtime")
    shell.ok(*line, "onnxruntime-1.24", "--record", "golden.json")
    text = Path("golden.json").read_text("utf-8")
    assert text.count('"build": "1.24.4"') == 3
    Path("golden.json").write_text(text.replace("onnxruntime_1_24", "onnxruntime_1_32"), "utf-8")
    shell.ok(*line, "onnxruntime-1.32", "--check", "golden.json")
    result = shell.run(*line, "onnxruntime-1.32", "--check", "golden.json", "--require", "golden", "--json")
    assert result.code == 6
    found = goldens(result.json())
    assert found.pop("weights")["verdict"] == "exact"
    assert len(found) == 3
    for check in found.values():
        assert (check["verdict"], check["compared"]) == ("absent", 0)
        start = "no golden for build '1.32.0' (the nearest has '1.24.4'); held against it: "
        assert check["detail"].startswith(start)


def test_another_llama_cpp_has_no_golden(shell: Any, dist: Path, golden: Path, libllama: Path) -> None:
    """As its own project builds it, for another processor: both parts of the key are named."""
    line = ("verify", dist, "--runtime", "llama.cpp", "--llama-lib", libllama, "--check", golden)
    found = goldens(shell.json(*line))
    assert found.pop("weights")["verdict"] == "exact"
    assert set(found) == {subject for subject in ALL if subject.startswith("llama_cpp")}
    for check in found.values():
        assert check["verdict"] == "absent"
        assert check["detail"].startswith("no golden for build 'llama.cpp ")
        assert "(the nearest has 'xllamacpp " in check["detail"]
        assert ", isa '" in check["detail"]
        assert "; held against it: " in check["detail"]
    assert shell.run(*line, "--require", "golden").code == 6
