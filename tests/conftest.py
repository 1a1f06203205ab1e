"""Fixtures that several test folders share: the data beside the checkout, and a model small enough for every test."""

import gc
import json
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from safetensors.numpy import save_file

from edgeqaf.quantize import quantize

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is loaded; see edgeqaf.cli.run
if "PYTEST_XDIST_WORKER" in os.environ:  # of a process for each processor, none takes all of them
    os.environ.setdefault("OMP_NUM_THREADS", "1")
CHECKOUT = Path(__file__).resolve().parents[1]
STORYTELLER = CHECKOUT / "examples" / "storyteller-6m"
HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 2, 4, 2, 16

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # how long an example takes says nothing where other tests run beside it
gc.set_threshold(20_000, 10, 10)  # a million objects are loaded here, and walking them takes a second each time


@pytest.fixture(scope="module", autouse=True)
def settled() -> None:
    """What a file leaves behind is loaded for good: looking for garbage, Python need not walk it again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # for what reports leaks at the end


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models and texts, kept beside the checkout and never inside it."""
    folder = CHECKOUT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder of real models and texts at {folder}")
    return folder


@pytest.fixture(scope="session")
def libllama() -> Path:
    """A folder with llama.cpp's libraries, as `make kits` fetches them."""
    folder = CHECKOUT / ".venv" / "places" / "llama.cpp" / "linux-x64"
    if not folder.is_dir():
        pytest.skip(f"no llama.cpp at {folder}: make kits")
    return folder


@pytest.fixture(scope="session")
def places() -> Path:
    """The folder of runtimes that are elsewhere, as `make places` fetches it."""
    folder = CHECKOUT / ".venv" / "places"
    if not folder.is_dir():
        pytest.skip(f"no runtimes elsewhere at {folder}: make places")
    return folder


@pytest.fixture(scope="session")
def tiny_float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random bfloat16 Llama in the Hugging Face layout, tied head, with storyteller-6m's tokenizer; read-only."""
    folder = tmp_path_factory.mktemp("tiny_float_model")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(STORYTELLER / name, folder / name)
    config = json.loads((STORYTELLER / "config.json").read_text("utf-8")) | {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    tensors = {name: values.astype(ml_dtypes.bfloat16) for name, values in _random_llama(config["vocab_size"]).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def tiny_base(tiny_float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_float_model` quantized onto q4_0: a base folder; read-only."""
    folder = tmp_path_factory.mktemp("tiny_base") / "base"
    quantize(tiny_float_model, folder, "q4_0", "rtn")
    return folder


def _random_llama(vocabulary: int) -> dict[str, np.ndarray]:
    """Weights whose activations keep their size from layer to layer, so that logits are neither flat nor saturated."""
    rng = np.random.default_rng(0)
    attention, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    linears = {
        "self_attn.q_proj": (attention, HIDDEN),
        "self_attn.k_proj": (keys, HIDDEN),
        "self_attn.v_proj": (keys, HIDDEN),
        "self_attn.o_proj": (HIDDEN, attention),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    tensors = {
        "model.embed_tokens.weight": rng.normal(0, 0.1, (vocabulary, HIDDEN)),
        "model.norm.weight": rng.normal(1, 0.1, HIDDEN),
    }
    for layer in range(LAYERS):
        place = f"model.layers.{layer}"
        for name, (out, inputs) in linears.items():
            tensors[f"{place}.{name}.weight"] = rng.normal(0, inputs**-0.5, (out, inputs))
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{place}.{name}.weight"] = rng.normal(1, 0.1, HIDDEN)
    return {name: values.astype(np.float32) for name, values in tensors.items()}
