"""Models: teachers of every kind, weight files and model folders.

Imports `recipe` and `graph`; does not depend on data, students or training.
"""
