"""What a run is asked to do: settings by dotted name, their sections, presets and TOML.

Torch-free. Imports only the modules directly under `fitcompress`.
"""
