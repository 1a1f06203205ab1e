"""One file per ``quant_method`` of a config.json; each exposes ``importer``, an `edgeqaf.importing.Importer`.

An importer undoes a layout. What its integers mean is `edgeqaf.qtensor.decode`'s.
"""
