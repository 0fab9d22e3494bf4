"""One run, step by step: prepare, plan, stage 1, stage 2, baseline, evaluation.

Imports every package but `ablation` and `cli`.
"""
