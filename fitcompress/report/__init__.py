"""The evidence of a run as text, JSON, Markdown and one HTML page.

Torch-free: reads run directories. Imports `recipe` and the modules directly under `fitcompress`.
"""
