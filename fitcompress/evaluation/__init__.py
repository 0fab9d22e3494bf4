"""Accuracy and its significance, errors by class, time and memory.

Imports `records`, `data` and `models`.
"""
