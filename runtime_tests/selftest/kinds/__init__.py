"""Kinds of defects: one small function each, in the file of its family.

A function marked with one of the decorators of `runtime_tests.selftest.registry` is a kind, under its own name in
words. A new one needs nothing else: the self-test seeds it wherever it applies.

    weights      codes of a matrix          layouts      how a matrix lies in a file
    scales       what multiplies codes      floats       tensors that are on no grid
    statements   what a file says beside    files        bytes of a file, whatever they mean
    runtimes     what computes
"""
