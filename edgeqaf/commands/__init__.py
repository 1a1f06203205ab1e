"""One file per verb of the command line; each exposes ``command``, a typed function that is its help text."""
