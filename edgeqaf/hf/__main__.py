"""``python -m edgeqaf.hf lm_eval ...``: another package's program, run where transformers loads our folders."""

import runpy
import sys


def main() -> None:
    """Run the module that the first argument names as ``python -m`` would, with the arguments after it."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m edgeqaf.hf MODULE ARGUMENTS, such as: lm_eval --model hf ...")
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
