"""The tiny models of timm, and the sizes at which they are tested."""

import timm

MODELS = timm.list_models("test_*")
"""18 in timm 1.0.31."""

SIDE = 64
"""Smaller than the models' own 160 or 96 if they allow it; the tests do not depend on the size."""

OWN_SIZE = {"test_coatnet", "test_maxvit", "test_vit_relpos"}
"""Tables of relative positions fix the input size of these."""
