"""Networks on disk and in memory: opening every kind of teacher, model folders.

Imports `recipe` and `graph`; knows nothing of data, students or training.
"""
