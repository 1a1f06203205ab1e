"""The model card that travels with a dist folder."""

from collections.abc import Mapping
from typing import Any

from edgeqaf.movement import Movement

RUN = {
    "gguf": "llama-server -m {file}    # or any llama.cpp front end",
    "onnx": "{file}/model.onnx    # onnxruntime, onnxruntime-genai, optimum's ORTModelForCausalLM",
}


def model_card(receipt: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Markdown: what was tuned, on which grid, how far, how to run it, how to check it."""
    entries = receipt["tensors"].values()
    grids = sorted({e["grid"] for e in entries} - {"float32"})
    moved = sum((Movement(**layer) for layer in receipt.get("layers", {}).values()), Movement())
    tuned = f"{moved.moved:,} of {moved.weights:,} codes moved ({moved.share:.1%})" if moved.weights else "untuned"
    runs = "\n".join(
        f"    {RUN[name].format(file=file)}" for name, file in sorted(receipt["artifacts"].items()) if name in RUN
    )
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

Check it, bit for bit, in the runtimes of your machine:

    edgeqaf verify .
"""
