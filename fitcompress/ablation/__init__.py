"""The same student trained with and without parts of its supervision, over several seeds.

Imports `run` and `report`.
"""
