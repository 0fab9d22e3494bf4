"""What a program is made of: blocks on its spine, parameters and multiply-adds.

Imports `graph` and `graph.axes`.
"""
