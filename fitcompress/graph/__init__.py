"""The one graph: capture, lift, analyse, transform and cut networks. Layer: torch, errors, spec."""
