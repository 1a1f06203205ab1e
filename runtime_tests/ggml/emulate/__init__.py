"""llama.cpp's CPU kernels written again: the same bits by the same order of operations.

A kernel rounds the activations to 8 bits (`activations`), multiplies integers, which is exact in any order, and adds
floats, whose order is the kernel's own. One file holds one family of orders; `paths` says which family, with which
rule of rounding, is which kernel's. docs/design/kernel-emulators.md tells how they were found out.
"""
