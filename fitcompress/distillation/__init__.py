"""The method (FitNets; Hinton et al.): hint pairs, regressors, losses, objectives, frozen teacher.

Imports `graph`, `models`, `data` and `training`; knows nothing of runs.
"""
