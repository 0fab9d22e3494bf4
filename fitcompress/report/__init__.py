"""The evidence of a run, as a value and as pages. Reads the run directory; knows no torch."""

from fitcompress.report.report import Report

__all__ = ["Report"]
