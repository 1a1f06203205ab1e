"""ONNX Runtime wherever it runs: in this process, another Python, Node, an emulated processor."""
