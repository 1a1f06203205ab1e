"""lm-eval's own model class on our folders gives what it gives for the same integers built by us."""

import json
from pathlib import Path

import pytest

from edgeqaf import checkpoint
from edgeqaf.modeling import build

STORYTELLER = Path(__file__).resolve().parents[2] / "examples" / "storyteller-6m"
pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'edgeqaf[eval]'")


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")  # HFLM passes what it read from the folder
def test_its_huggingface_model_reads_a_merged_folder(merged):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    requests = [
        Instance("loglikelihood", {}, pair, number)
        for number, pair in enumerate([("Once upon", " a time"), ("The sky is", " blue"), ("The sky is", " green")])
    ]
    stored = checkpoint.load(merged)
    built = build(stored.config, stored.tensors)
    found = HFLM(pretrained=str(merged), device="cpu", batch_size=1).loglikelihood(requests, disable_tqdm=True)
    wanted = HFLM(pretrained=built, tokenizer=AutoTokenizer.from_pretrained(STORYTELLER), device="cpu", batch_size=1)
    assert found == wanted.loglikelihood(requests, disable_tqdm=True)
    assert len(json.dumps(found)) > 10
    assert len({value for value, _ in found}) == 3
