"""The model card that travels with a dist folder."""

from collections.abc import Mapping
from typing import Any

from edgeqaf.movement import Movement
from edgeqaf.serving import Serving
from edgeqaf.splitnames import names_from

MODELFILE = "Modelfile"
ONNX = "{file}/model.onnx    # onnxruntime, onnxruntime-genai, optimum's ORTModelForCausalLM"


def model_card(receipt: Mapping[str, Any], config: Mapping[str, Any], serving: Serving) -> str:
    """Markdown: what was tuned, on which grid, how far, how to run it, how to check it."""
    entries = receipt["tensors"].values()
    grids = sorted({e["grid"] for e in entries} - {"float32"})
    moved = sum((Movement(**layer) for layer in receipt.get("layers", {}).values()), Movement())
    tuned = f"{moved.moved:,} of {moved.weights:,} codes moved ({moved.share:.1%})" if moved.weights else "untuned"
    lines = [line for name, file in sorted(receipt["artifacts"].items()) for line in _runs(name, file, serving)]
    runs = "\n".join(f"    {line}" for line in lines)
    doubts = "".join(f"\nNote: {doubt}.\n" for doubt in serving.doubts)
    return f"""# A {config["model_type"]} model tuned on the grid {", ".join(grids)}

Its integers are the tuned ones, not a second rounding of them: {tuned}. Every format in this folder
carries the same integers.

| | |
|---|---|
| Merkle root | `{receipt["root"]}` |
| root of the base | `{receipt.get("parent") or "(this is a base)"}` |
| made by | edgeqaf {receipt["tool"]["edgeqaf"]} |

Run it:

{runs}
{doubts}
Check it, bit for bit, in the runtimes of your machine:

    edgeqaf verify .
"""


def ollama_takes(file: str | None) -> bool:
    """Whether Ollama takes a GGUF file: it takes none that is split."""
    return file is not None and len(names_from(file)) == 1


def _runs(name: str, file: str, serving: Serving) -> list[str]:
    """Commands that serve an artifact."""
    if name == "gguf":
        ollama = [f"ollama create NAME -f {MODELFILE} && ollama run NAME"] if ollama_takes(file) else []
        return [serving.llama_server(file), *ollama]
    return [ONNX.format(file=file)]
