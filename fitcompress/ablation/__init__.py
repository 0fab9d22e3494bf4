"""Ablations: one student trained with and without parts of the teacher's supervision."""
