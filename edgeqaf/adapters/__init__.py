"""One file per tuning method; each exposes ``adapter``, its class."""
