"""The configuration of a run: settings by dotted name, their sections, presets and TOML files.

Imports only the modules directly under `fitcompress`; no torch.
"""
