"""edgeqaf: fine-tune on the quantization grid, and ship the very integers that were tuned.

The package root stays light: importing it loads nothing heavier than the standard library. Start
reading at ``edgeqaf.grid`` (what a stored number means), then ``edgeqaf.qtensor`` (``decode`` and
``fold``). After ``import edgeqaf`` transformers loads our folders, and peft our layers (``edgeqaf.hf``).
"""

from edgeqaf import hf

__version__ = "0.1.0"

hf.announce()
