"""One run, step by step: from a recipe to a trained, measured student in a run directory."""
