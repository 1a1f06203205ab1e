"""Quantizing a large float16 model, command by command: how long it takes, and in how much memory.

    python benchmarks/quantize_large.py --shape 1b

The model is a Llama of random weights in the shape of a real one (`synthetic.py`), quantized to q4_0 from a folder to a
base folder, everything read back and hashed. Each quantizer is a process of its own, whose peak memory is its own.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import steps
from synthetic import SHAPES, floats

from edgeqaf.quantize import quantize

WORDS = "The quick brown fox jumps over the lazy dog, and then it sleeps by the river until the evening comes.\n"


def step(what: str, folder: Path, shape: str, tokens: int) -> None:
    """One step, in this process."""
    if what == "floats":
        floats(folder, shape)
        (folder / "calib.txt").write_text(WORDS * (tokens // 50))  # a token is a byte of this tokenizer
    else:
        more = {"calib": str(folder / "calib.txt"), "calib_tokens": tokens} if what == "gptq" else {}
        quantize(folder, folder.with_name(f"{folder.name}-{what}"), "q4_0", what, **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    parser.add_argument("--quantizers", default="absmax,rtn,gptq")
    parser.add_argument("--calib-tokens", type=int, default=2048)
    parser.add_argument("--dir", type=Path, help="where the files lie for the time")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        steps.measure(lambda: step(asked.step, asked.dir, asked.shape, asked.calib_tokens))
        return
    with tempfile.TemporaryDirectory(dir=asked.dir) as place:
        folder = Path(place) / "model"
        folder.mkdir()
        line = [sys.executable, __file__, "--shape", asked.shape, "--calib-tokens", str(asked.calib_tokens)]
        for what in ("floats", *asked.quantizers.split(",")):
            done = steps.run([*line, "--dir", str(folder), "--step", what])
            print(f"{what:8} {done['seconds']:7.1f} s  peak {done['mb']:6.0f} MB", flush=True)


if __name__ == "__main__":
    main()
