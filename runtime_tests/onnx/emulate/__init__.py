"""ONNX Runtime's CPU kernels (MLAS) written again: the same bits by the same order of operations.

`decoded` kernels multiply floats, the weights decoded first; `rounded` ones round activations to 8 bits, per block.
`offsets` is the second term of grids with a float zero. `paths` says which order is which kernel's.
docs/design/onnx-kernel-emulators.md tells how they were found out.
"""
