"""The evidence of a run, or of several, as a value and as pages. Reads run directories; knows no
torch."""

from fitcompress.report.comparison import Comparison
from fitcompress.report.report import Report

__all__ = ["Comparison", "Report"]
