"""ctypes bindings to a stock llama.cpp: its library, GGUF reader, matrix product and whole models."""
