"""The exact profile: a decoder whose logits have the same bits on every machine.

TODO essay
"""
