"""What a run writes as JSON and its report reads, as frozen dataclasses.

Torch-free. Imports the modules directly under `fitcompress`.
"""
