"""One training loop with checkpoints, resume and several processes; knows no stage.

Imports `recipe`, `data` and `models`.
"""
