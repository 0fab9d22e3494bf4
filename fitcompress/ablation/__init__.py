"""Ablations: a student trained with and without parts of the teacher's supervision.

Imports `run`, and what the runs share below it.
"""
