"""Profiles are complete and strict; what a model needs is the arithmetic one does by hand."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from devices import fit, profile, size
from edgeqaf import checkpoint, plugins
from edgeqaf.commands.devices import command
from edgeqaf.dist import REFERENCE
from edgeqaf.errors import OutOfResources, Refused, UsageError
from edgeqaf.source import EMBEDDING, HEAD, FloatModel

CHECKOUT = Path(__file__).resolve().parents[2]
SHARED = CHECKOUT.parent / "shared"
STORYTELLER = CHECKOUT / "examples" / "storyteller-6m"
SMALLEST, LARGEST = "android-4gb", "raspberry-pi-5"


def shared(path: str) -> Path:
    if not (SHARED / path).exists():
        pytest.skip(f"{SHARED / path} is not here")
    return SHARED / path


def config_only(path: str, tmp_path: Path) -> Path:
    shutil.copyfile(shared(path) / "config.json", tmp_path / "config.json")
    return tmp_path


@pytest.mark.parametrize("name", profile.names())
def test_every_profile_is_complete_and_sourced(name: str) -> None:
    found = profile.find(name)
    assert (found.name, len(list(found.figures()))) == (name, 8)
    assert all(figure.source and figure.date for _, figure in found.figures())
    assert 0 < found.budget_bytes <= found.memory_bytes.value
    assert set(found.grids.value) <= set(plugins.names("grids"))
    assert {f.runtime for f in fit.LOADING.values()} & set(found.runtimes.value)


@pytest.mark.parametrize("name", profile.names())
@pytest.mark.parametrize("entry", ["usable_share", "context_tokens"])
def test_what_nobody_publishes_is_marked_or_ours(name: str, entry: str) -> None:
    figure = getattr(profile.find(name), entry)
    assert figure.estimate or figure.source.startswith(("edgeqaf:", "Metal recommendedMaxWorkingSetSize"))


def edited(tmp_path: Path, old: str, new: str) -> Path:
    text = (profile.FOLDER / f"{LARGEST}.toml").read_text("utf-8")
    assert old in text
    (tmp_path / "edited.toml").write_text(text.replace(old, new, 1), "utf-8")
    return tmp_path / "edited.toml"


@pytest.mark.parametrize(
    ("old", "new", "cause", "remedy"),
    [
        ("[memory_bytes]", "[memory_byte]", "unknown key 'memory_byte'", "did you mean memory_bytes?"),
        ("source =", "sauce =", "memory_bytes: unknown key 'sauce'", "did you mean source?"),
        ("value = 8_589_934_592\n", "", "memory_bytes: no value", "required"),
        ("value = 8_589_934_592", "value = -1", "memory_bytes.value is -1", "whole number above zero"),
        ("value = 8_589_934_592", "value = true", "memory_bytes.value is True", "whole number above zero"),
        ("value = 0.8", "value = 1.5", "usable_share.value is 1.5", "up to 1"),
        ('date = "2023-09-28"', 'date = "last year"', "date is 'last year'", "YYYY"),
        ('source = "Raspberry Pi Ltd', 'source = ""\n#', "memory_bytes.source is ''", "not empty"),
        ('kind = "single-board computer"\n', "", "no kind", "required"),
        ('kind = "', "kind = ", "edited.toml", "a profile is a TOML file"),
    ],
)
def test_a_profile_that_is_not_exact_is_refused(tmp_path: Path, old: str, new: str, cause: str, remedy: str) -> None:
    with pytest.raises(Refused) as refused:
        profile.read(edited(tmp_path, old, new))
    assert cause in refused.value.cause
    assert remedy in refused.value.remedy


def test_a_figure_without_a_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bare.toml").write_text(
        "\n".join(f"{name} = 1" for name, _ in profile.find(LARGEST).figures()) + '\ntitle = "t"\nkind = "k"\n', "utf-8"
    )
    with pytest.raises(Refused, match="memory_bytes is 1, without a source"):
        profile.read(tmp_path / "bare.toml")


def test_an_unknown_device_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown device 'rasberry-pi-5'") as unknown:
        profile.find("rasberry-pi-5")
    assert "did you mean raspberry-pi-5?" in unknown.value.remedy
    assert profile.find("Mac").name == "macbook-air-m2"
    with pytest.raises(UsageError, match="unknown device 'raspberry'"):
        profile.find("raspberry")  # two begin like that


def test_storyteller_by_hand() -> None:
    linears = 6 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 768 * 256)
    floats = 4096 * 256 + 13 * 256
    sized = size.size(STORYTELLER, "gguf")
    assert linears == 4_718_592
    assert sized.weight_bytes == linears * 18 // 32 + floats * 4 == 6_861_824
    assert size.size(STORYTELLER, "onnx").weight_bytes == linears * 41 // 64 + floats * 4  # a zero point a block
    assert size.size(STORYTELLER, "gguf", "q4_1").weight_bytes == linears * 20 // 32 + floats * 4
    assert size.size(STORYTELLER, "onnx", "q4_1").weight_bytes == linears * 49 // 64 + floats * 4
    assert size.size(STORYTELLER, "gguf", "q8_0").weight_bytes == linears * 34 // 32 + floats * 4
    assert fit.kv_bytes(sized.dimensions, 1024) == 6 * 2 * 64 * 2 * 1024 * 2 == 3_145_728


@pytest.mark.parametrize(
    ("config", "weights", "context", "cache"),
    [
        ("Llama-3.2-1B-Instruct", 547_356_672 + 1_050_673_152 + 270_336, 2048, 67_108_864),
        ("llama3-8B-instruct", 3_925_868_544 + 2 * 2_101_346_304 + 1_064_960, 8192, 2**30),
    ],
)
def test_real_configs_by_hand(config: str, weights: int, context: int, cache: int, tmp_path: Path) -> None:
    """Linears at 4.5 bits, embedding (and head) in float32, norms in float32; KV heads of 16 bits."""
    sized = size.size(config_only(f"configs/{config}", tmp_path), "gguf")
    assert sized.weight_bytes == weights
    assert fit.kv_bytes(sized.dimensions, context) == cache


def test_a_config_alone_gives_the_size_of_its_weights(tmp_path: Path) -> None:
    shutil.copyfile(STORYTELLER / "config.json", tmp_path / "config.json")
    implied = {name: shape for name, shape, _ in size._implied_tensors(tmp_path, plugins.find("grids", "q4_0"))}
    model = FloatModel(STORYTELLER)
    assert implied == {name: model.shape(name) for name in model}


@pytest.mark.parametrize("grid", [n for n in plugins.names("grids") if plugins.find("grids", n).levels is None])
def test_planned_and_made_have_the_same_size(grid: str, tmp_path: Path) -> None:
    quantize = plugins.find("quantizers", "absmax")
    model, on = FloatModel(STORYTELLER), plugins.find("grids", grid)
    tensors = {
        n: quantize(model[n], on) if model.is_linear(n) and on.fits(model.shape(n)[-1]) else model[n] for n in model
    }
    made = checkpoint.save(
        checkpoint.QModel(model.config, tensors, STORYTELLER), tmp_path / "base", kind="base", parent=None, options={}
    )
    for name in plugins.names("exporters"):
        exporter = plugins.find("exporters", name)
        if exporter.refuses(on):
            with pytest.raises(Refused, match=f"{name} cannot carry grid {grid}"):
                size.size(made.folder, name)
            continue
        planned, stored = size.size(STORYTELLER, name, grid), size.size(made.folder, name)
        assert (stored.weight_bytes, stored.grids) == (planned.weight_bytes, (grid,))
        rest = exporter.plan(made) - stored.weight_bytes  # header or graph, tokenizer
        assert 0 < rest < 1_000_000


@pytest.mark.parametrize(("format", "block"), [("gguf", 34), ("onnx", 37)])  # onnx: a float32 scale and a zero point
@pytest.mark.parametrize("head", ["tied", "quantized", "float"])
def test_quantized_ends_are_matrices_unless_they_are_looked_up(
    head: str, format: str, block: int, tmp_path: Path
) -> None:
    on, model = plugins.find("grids", "q8_0"), FloatModel(STORYTELLER)
    quantize = plugins.find("quantizers", "absmax")
    tensors = {n: quantize(model[n], on) if model.is_linear(n) or n == EMBEDDING else model[n] for n in model}
    if head != "tied":
        tensors[HEAD] = tensors[EMBEDDING] if head == "quantized" else model[EMBEDDING]
    made = checkpoint.QModel(model.config, tensors, STORYTELLER)
    base = checkpoint.save(made, tmp_path / "base", kind="base", parent=None, options={})
    config = json.dumps({**model.config, "tie_word_embeddings": head == "tied"})
    (base.folder / "config.json").write_text(config, "utf-8")
    sized, linears, norms = size.size(base.folder, format), 4_718_592 // 32 * block, 13 * 256 * 4
    table, floats = 4096 * 256 // 32 * block, 4096 * 256 * 4
    assert sized.lookup_bytes == (0 if head == "tied" else table)
    assert sized.float_head_bytes == (floats if head == "float" else 0)
    assert sized.matrix_bytes == linears + norms + (0 if head == "float" else table)
    assert sized.weight_bytes == sized.matrix_bytes + sized.lookup_bytes + sized.float_head_bytes


def test_a_dist_folder_counts_its_files(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "model.gguf").write_bytes(bytes(1000))
    (tmp_path / "onnx" / "model.onnx").write_bytes(bytes(30))
    (tmp_path / "onnx" / "model.onnx.data").write_bytes(bytes(400))
    (tmp_path / REFERENCE).mkdir()
    shutil.copyfile(STORYTELLER / "config.json", tmp_path / REFERENCE / "config.json")
    manifest = {
        "format": checkpoint.FORMAT,
        "kind": "dist",
        "artifacts": {"gguf": "model.gguf", "onnx": "onnx"},
        "tensors": {"model.layers.0.mlp.up_proj.weight": {"grid": "q4_1", "shape": [768, 256]}},
    }
    checkpoint.write_json(tmp_path / checkpoint.MANIFEST, manifest)
    assert size.size(tmp_path, "gguf").weight_bytes == 1000
    assert size.size(tmp_path, "onnx").weight_bytes == 430
    notes = fit.fits(size.size(tmp_path, "gguf"), profile.find(SMALLEST)).notes
    assert notes == ("q4_1 is not among the grids recommended there: q4_0, q8_0",)
    checkpoint.write_json(tmp_path / checkpoint.MANIFEST, manifest | {"artifacts": {"gguf": "../model.gguf"}})
    with pytest.raises(Refused, match=r"artifact '\.\./model\.gguf' is not in the folder"):
        size.size(tmp_path, "gguf")
    with pytest.raises(UsageError, match="has no onnx artifact; it has gguf"):
        size.size(tmp_path, "onnx")


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size"])
@pytest.mark.parametrize("value", [0, -1, "6", None, True, 2**40])
def test_a_config_without_sense_is_refused(key: str, value: object, tmp_path: Path) -> None:
    config = json.loads((STORYTELLER / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}), "utf-8")
    with pytest.raises(Refused, match=f"{key} is {value!r}, not a positive integer"):
        size.size(tmp_path, "gguf")


def test_the_answer_is_the_sum_against_the_budget() -> None:
    sized = size.size(STORYTELLER, "gguf")
    for name in profile.names():
        found = profile.find(name)
        answer = fit.fits(sized, found)
        assert answer.context_tokens == min(1024, found.context_tokens.value)
        assert answer.total_bytes == sum(answer.bytes_by_part.values()) <= answer.budget_bytes
        assert answer.fits
        assert answer.tokens_per_second_bound == found.bandwidth_bytes_per_s.value / sized.weight_bytes
    with pytest.raises(UsageError, match="context 1025 is outside the model's 1 to 1024"):
        fit.fits(sized, profile.find(LARGEST), 1025)


def test_what_does_not_fit_says_why(tmp_path: Path) -> None:
    sized = size.size(config_only("configs/llama3-8B-instruct", tmp_path), "gguf")
    answer = fit.fits(sized, profile.find(SMALLEST), 8192)
    assert not answer.fits
    assert f"{answer.total_bytes / 2**20:.1f} MiB needed, 1228.8 MiB are left" in answer.reasons[0]
    # an untied embedding table is looked up, not streamed
    assert answer.tokens_per_second_bound == 14.4e9 / (sized.weight_bytes - 2_101_346_304)


@pytest.mark.parametrize("context", [256, 1024])
def test_llama_cpp_allocates_what_we_say(context: int) -> None:
    """The KV cache to the byte; the compute buffer never more than the estimate."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    model = shared("models/storyteller-6m-gguf/storyteller-Q4_0.gguf")
    script = (
        "import sys, xllamacpp as x; p = x.CommonParams(); p.model.path = sys.argv[1]; p.n_ctx = int(sys.argv[2]);"
        "p.warmup = False; p.verbosity = 4; p.cpuparams.n_threads = 1; server = x.Server(p); sys.stdin.read()"
    )
    run = [sys.executable, "-c", script, str(model), str(context)]
    found: dict[str, float] = {}
    with subprocess.Popen(run, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        for line in server.stderr:  # a dry run that allocates 0.00 MiB of cache comes first
            for part in ("KV", "compute") if found.get("KV") else ("KV",):
                if f"CPU {part} buffer size =" in line:
                    found[part] = float(line.split("=")[1].split()[0])
            if "compute" in found:
                break
        server.kill()
    answer = fit.fits(size.size(STORYTELLER, "gguf"), profile.find(LARGEST), context)
    assert found["KV"] == answer.bytes_by_part["KV cache"] / 2**20
    assert 0 < found["compute"] <= answer.bytes_by_part["compute"] / 2**20


def call(*arguments: str) -> str:
    result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands_print_what_there_is() -> None:
    listed = json.loads(call("list", "--json"))
    assert [device["name"] for device in listed["devices"]] == profile.names()
    assert all(name in call("list") for name in profile.names())
    assert "LPDDR4X at 4267 MT/s" in call("show", LARGEST)
    assert json.loads(call("show", LARGEST, "--json"))["bandwidth_bytes_per_s"]["value"] == 17_068_000_000
    answer = json.loads(call("fit", str(STORYTELLER), "--device", LARGEST, "--context", "512", "--json"))
    assert (answer["fits"], answer["bytes_by_part"]["KV cache"]) == (True, 1_572_864)
    assert "roofline bound" in call("fit", str(STORYTELLER), "--device", LARGEST)


def test_a_model_too_large_ends_with_exit_code_5(tmp_path: Path) -> None:
    folder = config_only("configs/Llama-3.2-3B-Instruct", tmp_path)
    with pytest.raises(OutOfResources, match="MiB needed") as too_large:
        CliRunner().invoke(command, ["fit", str(folder), "-d", SMALLEST], catch_exceptions=False)
    assert too_large.value.exit_code == 5
    assert "shorter --context" in too_large.value.remedy


def test_the_guide_computes_what_the_code_computes(tmp_path: Path) -> None:
    guide = (CHECKOUT / "docs" / "guides" / "devices.md").read_text("utf-8")
    folder = config_only("configs/Llama-3.2-1B-Instruct", tmp_path)
    phone = profile.find("android-8gb")
    small = fit.fits(size.size(folder, "gguf"), phone, 2048)
    large = fit.fits(size.size(folder, "onnx"), phone, 8192)
    parts = [small.bytes_by_part[part] for part in ("weights", "KV cache", "compute", "runtime")]
    for count in [*parts, small.total_bytes, large.total_bytes, small.budget_bytes - small.total_bytes]:
        assert f" {count / 2**20:.1f}" in guide.replace(",", "")
    assert f"{small.bytes_by_part['weights']:,}" in guide
    assert f"= {small.tokens_per_second_bound:.0f} tokens a second" in guide
    assert (small.fits, large.fits) == (True, False)
