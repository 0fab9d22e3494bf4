"""Exports to ONNX (float32, float16, int8), TorchScript, `.pt2` and `model.py`, each checked.

Imports `models`, `data`, `evaluation` and `records`.
"""
