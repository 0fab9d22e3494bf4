"""Files that others run: ONNX, int8, TorchScript, `.pt2`, `model.py`; each checked against its network.

Imports `models`, `data` and `evaluation`.
"""
