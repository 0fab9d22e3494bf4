"""From a teacher's program to a student: thinner, deeper, within a budget, with first weights.

Imports `graph`, `models`, `distillation` and `exporters` (a latency is measured on an export).
"""
