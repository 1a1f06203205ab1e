"""One file per quantizer; each exposes ``quantizer`` (`edgeqaf.quantizer`). The file's name is the quantizer's name."""
