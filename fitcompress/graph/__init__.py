"""The network as a graph of ATen calls: the program, its shapes, cutting, folding and lifting.

Imports torch and the modules directly under `fitcompress`; never `recipe`, `data` or a run.
"""
