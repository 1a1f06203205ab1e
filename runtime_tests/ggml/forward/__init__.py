"""llama.cpp's whole forward written again on the CPU: logits from token ids, the file's integers and floats, no more.

What is quantized is multiplied by `runtime_tests.ggml.emulate`; here are the operations between: products of floats
(`floats`), exponentials (`exponential`), norms (`norm`), rotations (`rotation`), attention (`attention`, `flash`), and
the graph that puts them together (`network`). Each holds an operation's order of sums and its roundings; an
`arithmetic.Arithmetic` says which of them a build has, and a self-test finds it. docs/design/llama-cpp-forward.md tells
how they were found out.
"""
