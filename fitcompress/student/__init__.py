"""Students: their depth, width and initial weights, derived from a teacher's program.

Imports `graph`, `models`, `distillation` and `exporters` (a latency is measured on an export).
"""
