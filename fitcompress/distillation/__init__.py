"""The method of FitNets and Hinton et al.: hint pairs, regressors, losses, objectives.

Imports `graph`, `models`, `data` and `training`; knows nothing of runs.
"""
