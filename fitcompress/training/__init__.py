"""The training loop with checkpoints, resuming and several processes; independent of stages.

Imports `recipe`, `data` and `models`.
"""
