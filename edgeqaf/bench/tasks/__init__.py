"""One file per task of the bench; each exposes ``task``, a `BenchTask`."""
