"""One file per kind of source; each exposes ``source``, an `edgeqaf.data.reading.Source`."""
