"""Readable `model.py` files from programs.

Imports `graph` and `models`.
"""
