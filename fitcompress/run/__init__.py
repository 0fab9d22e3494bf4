"""One run, step by step: from a recipe to a trained and measured student in a run directory.

Imports every package but `ablation` and `cli`.
"""
