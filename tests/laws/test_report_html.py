"""The HTML report: no proof without exact checks, no markup from a file, the same bytes for the same inputs."""

import hashlib
import json
import shutil
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from xml.etree.ElementTree import fromstring

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeqaf import checkpoint, dist, finetune, html, merge, plugins
from edgeqaf.commands.report import command
from edgeqaf.digest import merkle_root, tensor_digest
from edgeqaf.errors import Refused, UsageError
from edgeqaf.html import plots
from edgeqaf.jsonfile import write_json
from edgeqaf.movement import Movement
from edgeqaf.protocols import RuntimeOptions
from edgeqaf.qtensor import QTensor
from edgeqaf.report import Check, Difference, Verdict, VerificationReport
from runtime_tests import verify

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\u202e{{ 7*7 }}&<b>'
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "footer", "section", "h1", "h2", "h3", "p", "small"),
    *("dl", "dt", "dd", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "span", "code", "br", "div"),
    *("figure", "figcaption", "details", "summary", "svg", "g", "line", "rect", "circle", "polyline", "text"),
}
TENSORS = [f"model.layers.{i}.{p}.weight" for i in range(2) for p in ("mlp.down_proj", "self_attn.q_proj")]
WEIGHTS = 4 * 2 * 32


def integers(seed=0):
    rng = np.random.default_rng(seed)
    q4_0 = plugins.find("grids", "q4_0")
    scale = np.full((2, 1), 0.5, np.float32)
    tensors = {n: QTensor(q4_0, rng.integers(0, 16, (2, 32)).astype(np.int8), scale) for n in TENSORS}
    return tensors | {"model.embed_tokens.weight": np.ones((3, 2), np.float32)}


def make_run(folder: Path, method="lowrank", log: str | None = None, **changes):
    folder.mkdir()
    digests = {n: tensor_digest(n, t) for n, t in integers().items() if isinstance(t, QTensor)}
    layer = {
        "weights": 64,
        "moved": 16,
        "moved_far": 2,
        "saturated": 5,
        "saturated_before": 4,
        "zeros": 0,
        "zeros_moved": 0,
    }
    manifest = {
        "format": 1, "kind": "run", "method": method, "steps": 1200, "training_loss": 2.5, "held_out_loss": 0.125,
        "parent": "0" * 64, "lossless": True, "folded": digests, "layers": {n: layer | {"omega": 0.5} for n in TENSORS},
        "options": {"lr": 0.1, "rank": 16}, "seed": 0,
    }  # fmt: skip
    write_json(folder / "edgeqaf.json", manifest | changes)
    lines = [{"step": s, "loss": 8.0 / s, "learning_rate": 0.1} for s in range(1, 81)] + [
        {"step": 80, "eval_loss": 0.125}
    ]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines) if log is None else log, "utf-8")
    return folder


def make_dist(folder: Path, checks=None, **changes):
    (folder / "onnx").mkdir(parents=True)
    contents = {"model.gguf": b"GGUF bytes", "onnx/model.onnx": b"ONNX bytes", "reference.json": b"{}"}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    entries = {
        n: {
            "grid": "q4_0" if isinstance(t, QTensor) else "float32",
            "shape": list(t.shape),
            "digest": tensor_digest(n, t),
        }
        for n, t in integers().items()
    }
    root = merkle_root({n: e["digest"] for n, e in entries.items()})
    files = {n: {"sha256": hashlib.sha256(d).hexdigest(), "bytes": len(d)} for n, d in contents.items()}
    receipt = {
        "format": 1, "kind": "dist", "root": root, "parent": "0" * 64, "tensors": entries, "files": files,
        "artifacts": {"gguf": "model.gguf", "onnx": "onnx"}, "tool": {"edgeqaf": "0.1.0"},
    }  # fmt: skip
    write_json(folder / "edgeqaf.json", receipt | changes)
    if checks is not None:
        write_json(folder / "verify.json", {"root": root, **VerificationReport(tuple(checks)).as_json()})
    return folder


def file_checks():
    return [Check("R0", f, Verdict.EXACT, 5, WEIGHTS + 6) for f in ("gguf", "onnx")]


def climbed(subject, verdict=Verdict.EXACT, compared=WEIGHTS):
    return [Check(rung, subject, verdict, 4, compared) for rung in ("R1", "R2")]


def exact_checks():
    logits = Check("R4", "llama_cpp plain on gguf", Verdict.BOUNDED, 4, 999, 7, "logits", "8-bit activations")
    return [*file_checks(), *climbed("llama_cpp plain on gguf"), *climbed("onnxruntime off on onnx"), logits]


def make_score(path: Path, **changes):
    write_json(
        path, {"label": "tuned", "runtime": "torch_cpu", "rows": 3000, "matched": 2875, "exact_match": 0.0, **changes}
    )
    return path


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def page_of(folders, scores=()):
    return html.render(html.collect(folders, list(scores)))


def tone_of(*folders):
    return html.conclude(html.collect(folders, []))


def test_a_proven_folder_says_so_with_its_numbers(tmp_path):
    folders = [make_run(tmp_path / "run"), make_dist(tmp_path / "dist", exact_checks())]
    sentence = (
        "256 weights on q4_0: the integers tuned are, bit for bit, the integers in 2 artifacts, checked in 2 runtimes."
    )
    assert tone_of(*folders) == (html.Tone.PROVEN, sentence)
    page = page_of(folders, [make_score(tmp_path / "score.json")])
    numbers = [sentence, "2,875 of 3,000", "95.8%", "model.embed_tokens.weight", "1,200", "rank 16", ">yes<"]
    numbers += ["16 of 64 codes moved", "6 exact", "1 bounded", "0 absent", hashlib.sha256(b"ONNX bytes").hexdigest()]
    assert [text for text in numbers if text not in page] == []


def test_the_page_loads_and_runs_nothing(tmp_path):
    folders = [make_run(tmp_path / "run"), make_dist(tmp_path / "dist", exact_checks())]
    page = page_of(folders, [make_score(tmp_path / "score.json")])
    for text in ("http:", "https:", "<script", "javascript", "src=", "href", "url(", "@import", str(tmp_path)):
        assert text not in page
    assert Tags(page).tags <= TAGS


def test_the_same_inputs_give_the_same_bytes_wherever_they_are(tmp_path):
    folders = [make_run(tmp_path / "run"), make_dist(tmp_path / "dist", exact_checks())]
    score = make_score(tmp_path / "score.json")
    moved = [shutil.copytree(folder, tmp_path / "elsewhere" / f"renamed-{folder.name}") for folder in folders]
    assert page_of(folders, [score]) == page_of(moved, [score])


def test_text_from_files_stays_text(tmp_path):
    layers = {f"model.layers.0.{HOSTILE}.weight": {"weights": 64, "moved": 16}, HOSTILE: {"weights": 64, "moved": 0}}
    run = make_run(tmp_path / "run", HOSTILE, layers=layers, options={HOSTILE: HOSTILE})
    first = Difference(HOSTILE, (1, 2), HOSTILE, HOSTILE)
    checks = [*file_checks(), Check("R2", HOSTILE, Verdict.DIFFERENT, 1, 64, 3, HOSTILE, HOSTILE, first)]
    exported = make_dist(tmp_path / "dist", checks)
    score = make_score(tmp_path / "score.json", label=HOSTILE, runtime=HOSTILE, method=HOSTILE)
    page = page_of([run, exported], [score])
    found = Tags(page)
    assert found.tags <= TAGS
    assert not [name for name in found.attributes if name.startswith("on")]
    assert "{{ 7*7 }}" in page
    assert "\u202e" not in page
    assert page.count("&lt;script&gt;") > 10


@pytest.mark.parametrize("verdict", [Verdict.DIFFERENT, Verdict.REFUSED])
def test_one_failed_check_fails_the_page(tmp_path, verdict):
    first = Difference(TENSORS[0], (1, 2), "0.5 (0x3f000000)", "1.0 (0x3f800000)")
    failed = Check("R2", "llama_cpp repack on gguf", verdict, 4, WEIGHTS, 3, "weights", "", first)
    exported = make_dist(tmp_path / "dist", [*exact_checks(), failed])
    tone, sentence = tone_of(exported)
    assert tone is html.Tone.FAILED
    assert "1 of 8 checks failed; the first is R2 llama_cpp repack on gguf" in sentence
    page = page_of([exported])
    assert "<details open>" in page
    assert f"first: {TENSORS[0]}[1, 2]: expected 0.5 (0x3f000000), found 1.0 (0x3f800000)" in page


def test_absent_is_never_shown_as_a_pass(tmp_path):
    absent = Check("R1", "onnxruntime on onnx", Verdict.ABSENT, detail="not installed")
    alone = make_dist(tmp_path / "alone", [*file_checks(), absent])
    assert tone_of(alone) == (
        html.Tone.OPEN,
        "256 weights on q4_0, exported in 2 artifacts; no runtime has checked every weight.",
    )
    page = page_of([alone])
    cell = f'<span class="verdict absent">{html.SYMBOLS[Verdict.ABSENT]} absent</span>'
    assert page.count(cell) == 2
    assert "not installed" in page
    rule = next(line for line in page.splitlines() if line.startswith(".absent"))
    assert "--good" not in rule
    beside = make_dist(tmp_path / "beside", [*file_checks(), *climbed("llama_cpp plain on gguf"), absent])
    tone, sentence = tone_of(beside)
    assert tone is html.Tone.PROVEN
    assert sentence.endswith("checked in 1 runtime. Absent, so not checked: onnxruntime.")


@pytest.mark.parametrize(
    ("checks", "reason"),
    [
        (None, "not verified yet"),
        ([], "(R0) for gguf, onnx"),
        (climbed("llama_cpp plain on gguf"), "(R0) for gguf, onnx"),
        (file_checks(), "no runtime has checked every weight"),
        (
            [*file_checks(), *climbed("llama_cpp plain on gguf", compared=WEIGHTS - 1)],
            "no runtime has checked every weight",
        ),
        ([*file_checks(), *climbed("llama_cpp plain on gguf", Verdict.BOUNDED)], "no runtime has checked every weight"),
        ([*file_checks(), climbed("llama_cpp plain on gguf")[0]], "no runtime has checked every weight"),
    ],
)
def test_less_than_every_weight_in_file_and_runtime_is_no_proof(tmp_path, checks, reason):
    tone, sentence = tone_of(make_dist(tmp_path / "dist", checks))
    assert tone is html.Tone.OPEN
    assert sentence.endswith(f"{reason}.")
    assert "bit for bit" not in sentence


def test_a_file_that_is_not_the_recorded_one_outweighs_an_old_verification(tmp_path):
    exported = make_dist(tmp_path / "dist", exact_checks())
    (exported / "onnx" / "model.onnx").write_bytes(b"ONNX bytez")
    assert tone_of(exported)[0] is html.Tone.FAILED
    assert "onnx/model.onnx, held against the receipt: differs" in tone_of(exported)[1]
    (exported / "onnx" / "model.onnx").unlink()
    assert "onnx/model.onnx, held against the receipt: missing" in tone_of(exported)[1]


def test_a_run_of_other_integers_is_told_apart(tmp_path):
    other = {n: tensor_digest(n, t) for n, t in integers(seed=1).items() if isinstance(t, QTensor)}
    run = make_run(tmp_path / "run", folded=other)
    exported = make_dist(tmp_path / "dist", exact_checks())
    assert tone_of(run, exported)[1].endswith("No run given here is the one that tuned them.")
    assert ">no<" in page_of([run, exported])


def test_what_was_not_given_is_left_out_and_named(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "log.jsonl").unlink()
    page = page_of([run])
    assert "a dist folder (artifacts, verification); score files (what eval found); log.jsonl of lowrank." in page
    assert "polyline {" in page
    assert "<polyline" not in page
    assert "<h2>Verification" not in page
    page = page_of([make_dist(tmp_path / "dist")])
    assert "verify.json (run: edgeqaf verify)" in page
    assert "<h2>Verification" not in page
    assert "<h2>Artifacts" in page


def test_runs_of_one_method_are_numbered_and_each_has_its_curve(tmp_path):
    runs = [make_run(tmp_path / f"run{i}", m) for i, m in enumerate(("lota", "lowrank", "lota"))]
    page = page_of(runs)
    assert [t.label for t in html.collect(runs, []).tunings] == ["lota 1", "lowrank", "lota 2"]
    assert page.count('<polyline class="smooth') == page.count("<circle") == 3


def test_losses_that_are_not_finite_are_counted_not_drawn(tmp_path):
    run = make_run(
        tmp_path / "run", log='{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": Infinity}\n'
    )
    page = page_of([run])
    assert 'Losses not finite</th><td class="number">2</td>' in page
    assert "nan" not in page.split("<svg", 2)[2].split("</svg>")[0]


@pytest.mark.parametrize("line", ["{", '{"step": "2"}', '{"loss": 1.0}', '{"step": -1}', "[]", "\udcff"])
def test_a_malformed_log_line_is_refused_with_file_and_line(tmp_path, line):
    run = make_run(tmp_path / "run")
    (run / "log.jsonl").write_bytes(b'{"step": 1, "loss": 1}\n\n' + line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(Refused, match=r"run/log\.jsonl, line 3: "):
        page_of([run])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "1" * 64}, "root 111111111111 is not that of its tensors"),
        ({"root": 7}, "root: .*; found '7'"),
        ({"files": {"../model.gguf": {"sha256": "0" * 64, "bytes": 1}}}, r"file '\.\./model\.gguf' is no path inside"),
        ({"files": {"/model.gguf": {"sha256": "0" * 64, "bytes": 1}}}, "file '/model.gguf' is no path inside"),
        ({"files": {"a\0b": {"sha256": "0" * 64, "bytes": 1}}}, r"file 'a\\x00b' is no path inside"),
        ({"files": {"a": {"sha256": "0" * 63, "bytes": 1}}}, "files.a.sha256: .*; found '0000"),
        ({"artifacts": {"gguf": "other.gguf"}}, "artifact 'other.gguf' has no file"),
        ({"layers": {"x": {"weights": 1, "moved": 2}}}, "x counts 2 moved of 1 weights"),
        ({"kind": "base"}, "is a base folder"),
        ({"format": 2}, "is format 2"),
    ],
)
def test_a_receipt_that_cannot_be_is_refused(tmp_path, changes, message):
    with pytest.raises(Refused, match=message):
        page_of([make_dist(tmp_path / "dist", exact_checks(), **changes)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "1" * 64}, "is about root 111111111111, this folder is "),
        (
            {"checks": [{"rung": "R9", "subject": "s", "verdict": "exact"}]},
            "R9 s exact, 0 of 0 differ: impossible",
        ),
        (
            {"checks": [{"rung": "R1", "subject": "s", "verdict": "exact", "compared": 9, "differing": 1}]},
            "1 of 9 differ",
        ),
        ({"checks": [{"rung": "R1", "subject": "s", "verdict": "passed"}]}, "checks.0.verdict: .*; found 'passed'"),
    ],
)
def test_a_verification_that_cannot_be_is_refused(tmp_path, changes, message):
    exported = make_dist(tmp_path / "dist", exact_checks())
    write_json(exported / "verify.json", json.loads((exported / "verify.json").read_text("utf-8")) | changes)
    with pytest.raises(Refused, match=message):
        page_of([exported])


def test_losses_and_tasks_are_shown_without_an_exact_match(tmp_path):
    score = {
        "label": HOSTILE, "runtime": "llama_cpp plain", "rows": 9, "loss": 2.1519, "perplexity": 8.6012,
        "bits_per_byte": 0.80301, "tasks": {HOSTILE: {"acc": 0.25, "acc_stderr": 0.1306, "rows": 12}},
    }  # fmt: skip
    write_json(tmp_path / "loss.json", score)
    page = page_of([], [tmp_path / "loss.json"])
    for text in ("Losses and tasks", "2.152", "8.601", "0.803", "0.25", "0.1306", "llama_cpp plain"):
        assert text in page
    assert "<h2>Exact match</h2>" not in page
    assert Tags(page).tags <= TAGS
    both = page_of([], [tmp_path / "loss.json", make_score(tmp_path / "score.json")])
    assert "<h2>Exact match</h2>" in both
    assert "2,875 of 3,000" in both


def test_a_score_file_without_a_score_is_refused(tmp_path):
    write_json(tmp_path / "none.json", {"label": "a", "runtime": "b", "rows": 3})
    with pytest.raises(Refused, match=r"none\.json holds no score"):
        page_of([], [tmp_path / "none.json"])
    write_json(tmp_path / "nan.json", {"label": "a", "runtime": "b", "rows": 3, "loss": float("nan")})
    with pytest.raises(Refused, match="loss: Input should be a finite number"):
        page_of([], [tmp_path / "nan.json"])


def test_a_score_of_more_matches_than_rows_is_refused(tmp_path):
    with pytest.raises(Refused, match="3001 matched of 3000 rows"):
        page_of([make_run(tmp_path / "run")], [make_score(tmp_path / "score.json", matched=3001)])


def test_two_dist_folders_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"a and .*b are both dist folders"):
        page_of([make_dist(tmp_path / "a"), make_dist(tmp_path / "b")])


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 9, "0%"), (9, 9, "100%"), (1, 10**6, "<0.1%"), (10**6 - 1, 10**6, ">99.9%"), (1, 3, "33.3%"), (0, 0, "0%")],
)
def test_a_percentage_rounds_to_all_or_nothing_only_where_exact(part, whole, text):
    assert html.percent(part, whole) == text


@given(st.lists(st.tuples(st.integers(0, 2**62), st.floats(-1e30, 1e30)), max_size=9))
@example([(0, 0.0), (1, 5e-324)])
@example([(0, 5e-324), (1, 1e30)])
@example([(0, 2.5)])
def test_curves_stay_inside_the_plot_whatever_the_losses(points):
    svg = fromstring(plots.loss_curves([plots.Curve("a", sorted(points), points)]))
    for dot in svg.iter("circle"):
        assert plots.LEFT <= float(dot.attrib["cx"]) <= plots.WIDTH - plots.RIGHT
        assert plots.TOP <= float(dot.attrib["cy"]) <= plots.HEIGHT - plots.BOTTOM
    ticks = [t for t in svg.iter("text") if t.attrib["text-anchor"] == "end"]
    assert len(ticks) <= 20


def test_a_long_curve_keeps_its_extremes_in_few_points():
    points = [(i, float(np.sin(i))) for i in range(10_000)] + [(10_000, 50.0), (10_001, -50.0), (10_002, 0.0)]
    thin = plots._thin(points)
    assert len(thin) <= plots.MOST_POINTS
    assert {50.0, -50.0} <= {v for _, v in thin}
    assert thin == sorted(thin)


def test_more_movement_is_more_colour_and_every_tensor_has_its_number():
    layers = {f"model.layers.{i}.self_attn.q_proj.weight": Movement(weights=100, moved=i) for i in (3, 10, 2, 47)}
    svg = fromstring(plots.heat_map(layers, plots.nice_top([m.share for m in layers.values()])))
    cells = list(svg.iter("g"))
    assert [g.find("title").text.partition(": ")[2] for g in cells] == [
        f"{n} of 100 codes moved" for n in (2, 3, 10, 47)
    ]
    strength = [float(g.find("rect").attrib["fill-opacity"]) for g in cells]
    assert strength == sorted(strength)
    assert strength[-1] == 0.94
    assert [g.find("text").text for g in cells] == ["2.0", "3.0", "10.0", "47.0"]


def test_folders_made_by_edgeqaf_are_read(tmp_path, tiny_base):
    data, run, merged, exported = (tmp_path / name for name in ("data.jsonl", "run", "merged", "dist"))
    rows = [{"prompt": f"Turn lamp {i} on.", "completion": f"lamp {i}"} for i in range(40)]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    settings = finetune.Settings(
        method="lowrank", steps=20, batch=4, holdout=0.2, eval_every=10, save_every=20, threads=1
    )
    manifest = finetune.finetune(tiny_base, data, run, settings)
    merge.merge(run, merged)
    receipt = dist.export(checkpoint.load(merged), ["gguf"], exported)
    opened = dist.open_dist(exported)
    found = verify.verify(opened, ["torch_cpu"], RuntimeOptions(), lambda done, note="": None)
    write_json(exported / "verify.json", {"root": receipt["root"], **found.as_json()})
    weights = sum(layer["weights"] for layer in manifest["layers"].values())
    tone, sentence = tone_of(run, exported)
    assert tone is html.Tone.PROVEN
    integers_in = f"{weights:,} weights on q4_0: the integers tuned are, bit for bit, the integers in 1 artifact"
    assert sentence == f"{integers_in}, checked in 1 runtime."
    page = page_of([run, exported])
    assert [
        text
        for text in (receipt["root"], receipt["parent"], receipt["files"]["model.gguf"]["sha256"])
        if text not in page
    ] == []
    assert page.count("<circle") == 2
    assert page.count(" codes moved</title>") == len(manifest["layers"])


def test_the_template_ships_beside_the_code():
    assert (resources.files("edgeqaf.html") / "report.html.j2").is_file()


def test_the_command_writes_the_page_and_replaces_it_only_when_forced(tmp_path, capsys):
    run, out = make_run(tmp_path / "run"), tmp_path / "report.html"
    command([run], out)
    assert out.read_text("utf-8") == page_of([run])
    assert "lowrank: 1,200 steps, 25.0% of 256 codes moved, held-out loss 0.125." in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"report\.html already exists"):
        command([run], out)
    command([run], out, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "run"]
