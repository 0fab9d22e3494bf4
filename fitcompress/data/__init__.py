"""Images and labels: folders, timm data sets, the built-in set, augmented views and loaders.

Imports `recipe` and the modules directly under `fitcompress`; knows nothing of graphs or models.
"""
