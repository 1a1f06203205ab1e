"""Task patches: what a task changed in a model's stored integers, to be put into a shipped file and taken out again.

A merged model differs from its base in some codes (and scales, where a method moves them), and in nothing else. Their
differences are few and small, so many tasks fit beside one model, and adding a difference is undone exactly by
taking it away. `coding` makes bytes of differences, `file` keeps those of a model, `journal` changes a file in
place so that a kill leaves it changed or unchanged, and `target` puts a patch into a file with its help.
"""
