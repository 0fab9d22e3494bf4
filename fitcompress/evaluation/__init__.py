"""Accuracy and its significance, errors by class, time and memory.

Imports `data`, `models` and `training`.
"""
