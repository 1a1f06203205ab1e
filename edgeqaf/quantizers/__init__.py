"""One file per quantizer; each exposes ``quantize(weights, grid) -> QTensor``.

A quantizer is policy: it chooses codes and scales. What they mean is `edgeqaf.qtensor.decode`'s.
"""
