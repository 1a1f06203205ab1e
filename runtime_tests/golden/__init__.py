"""Goldens: what a runtime computed once, by digest, so that a change of it is seen and named.

R0 to R4 say that a runtime is right as far as an answer is certain. Beyond that, in float sums of thousands of
terms, it is free; but one build on one processor does the same every time. A golden remembers what it did.

    file         a golden file: read strictly, added to, written
    observation  what is remembered of one climb
    isa          the instruction set of this machine, part of an entry's key
    comparison   a climb held against the file: equal, no golden, or what changed
"""
