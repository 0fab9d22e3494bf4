"""The algebra of axes: which dimensions of which tensors share a size.

`algebra` is pure Python; `rules` and `trace` apply it to a program. Imports `graph`.
"""
