"""Products of matrices in one llama.cpp, by whatever Python and processor runs this: FOLDER VARIANT IN.npz OUT.npz.

In: ``KEY/matrix`` bytes, ``KEY/about`` [ggml's type, out, in] and activations ``KEY/0``, ``KEY/1``, and so on. Out:
``KEY/0/plain`` and, where there is a layout, ``KEY/0/repack``.
"""

import sys
from pathlib import Path

import numpy as np

from edgeqaf.errors import RuntimeAbsent
from runtime_tests.ggml.file import FileTensor
from runtime_tests.ggml.library import load
from runtime_tests.ggml.matmul import Cpu, Matrix

folder, variant, source, target = sys.argv[1:]
given, made = np.load(source), {}
cpu = Cpu(load(Path(folder), variant), 1)
for key in sorted({name.rsplit("/", 1)[0] for name in given}):
    kind, out, inputs = map(int, given[f"{key}/about"])
    tensor = FileTensor("w", kind, str(kind), (out, inputs), given[f"{key}/matrix"])
    for repack in (False, True):
        try:
            matrix = Matrix(cpu, tensor, repack)
        except RuntimeAbsent:
            continue
        for name in given.files:
            if name.rsplit("/", 1)[0] == key and name.rsplit("/", 1)[1].isdigit():
                made[f"{name}/{'repack' if repack else 'plain'}"] = matrix.multiply(given[name])
        matrix.close()
np.savez(target, **made)
