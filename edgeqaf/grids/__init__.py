"""One file per grid; each exposes ``grid``. The file's name is the grid's name."""
