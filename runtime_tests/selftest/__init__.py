"""The verifier, verified: defects are seeded, and each must be caught and named (`edgeqaf verify --self-test`).

kinds        ways to be wrong, a function each; registry finds them
subjects     what is damaged: small models made on the fly, on every grid and in every program, or a dist folder
damage       which tensor gets which defect, and the artifact that then comes out of the real exporter
examine      in a child process: one subject, its defects, and which rung sees which
engines      runtimes that are changed themselves, down to their machine code
peers        what other projects' tolerances see of the same defects
findings     what came out, as a table and as JSON
bench        all subjects, two at a time
"""
