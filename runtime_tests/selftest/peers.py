"""What the tolerances of other projects see of a defect: outputs of one runtime, damaged, held against the same, sound.

Each is given the better of it: a defect counts as seen if it is in any configuration of any runtime.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from edgeqaf.digest import Floats


def nmse(sound: Floats, found: Floats) -> float:
    """Normalised mean squared error, as llama.cpp's tests have it: sum (a - b)^2 / sum a^2."""
    a, b = sound.astype(np.float64), found.astype(np.float64)
    size = float((a * a).sum())
    return float(((a - b) ** 2).sum()) / size if size else float((b != 0).any())


def cosine(sound: Floats, found: Floats) -> float:
    a, b = sound.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else float((a == b).all())


def within(sound: Floats, found: Floats, tolerance: float) -> bool:
    """Every element within ``tolerance`` absolute plus ``tolerance`` relative, as numpy.allclose and Polygraphy do."""
    a, b = sound.astype(np.float64), found.astype(np.float64)
    return bool((np.abs(a - b) <= tolerance + tolerance * np.abs(b)).all())


# name -> whether it passes; where it is from
TOLERANCES: Mapping[str, Callable[[Floats, Floats], bool]] = {
    "NMSE 5e-4": lambda a, b: nmse(a, b) <= 5e-4,  # llama.cpp tests/test-backend-ops.cpp, MUL_MAT
    "NMSE 1e-4": lambda a, b: nmse(a, b) <= 1e-4,  # llama.cpp tests/test-llama-archs.cpp
    "NMSE 1e-6": lambda a, b: nmse(a, b) <= 1e-6,  # llama.cpp tools/results
    "cosine 0.9999": lambda a, b: cosine(a, b) > 0.9999,
    "1e-5": lambda a, b: within(a, b, 1e-5),  # TensorRT Polygraphy, its default
}


def seen(sound: Floats, found: Floats) -> dict[str, bool]:
    """Which tolerances tell the two apart; all do where one has another shape or is not finite."""
    if sound.shape != found.shape or not np.isfinite(found).all():
        return dict.fromkeys(TOLERANCES, True)
    return {name: not passes(sound, found) for name, passes in TOLERANCES.items()}


def together(looks: Iterable[Mapping[str, bool]]) -> dict[str, bool]:
    """What each sees in any of them; empty without any."""
    found: dict[str, bool] = {}
    for each in looks:
        found |= {name: found.get(name, False) or tells for name, tells in each.items()}
    return found
