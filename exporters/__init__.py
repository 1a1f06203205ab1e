"""One file or package per artifact format; each exposes ``exporter`` (see edgeqaf.protocols.Exporter)."""
