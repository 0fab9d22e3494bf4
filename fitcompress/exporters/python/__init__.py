"""A readable `model.py` from a program.

Imports `graph`.
"""
