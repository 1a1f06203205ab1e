"""edgeqaf: fine-tune on the quantization grid, and ship the very integers that were tuned.

The package root stays light: importing it loads numpy and nothing heavier. Start reading at
``edgeqaf.grid`` (what a stored number means), then ``edgeqaf.qtensor`` (``decode`` and ``fold``).
"""

__version__ = "0.1.0"
