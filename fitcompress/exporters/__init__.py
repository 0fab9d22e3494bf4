"""Files that others run: ONNX, int8, TorchScript, `.pt2` and `model.py`, each checked.

Imports `models`, `data` and `evaluation`.
"""
