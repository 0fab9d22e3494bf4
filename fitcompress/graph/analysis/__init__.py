"""Analysis of a program: the blocks on its spine, its parameters, multiply-adds and depth.

Imports `graph` and `graph.axes`.
"""
