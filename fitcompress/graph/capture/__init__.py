"""From a module, a TorchScript archive or a `.pt2` to a program.

Imports `graph` and `graph.analysis`.
"""
