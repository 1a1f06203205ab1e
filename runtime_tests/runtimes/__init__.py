"""One file per inference engine; each exposes ``runtime`` (see edgeqaf.protocols.Runtime)."""
