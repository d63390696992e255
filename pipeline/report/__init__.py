"""What a run says about itself: the self-contained report.html and the table printed at the end."""

from pipeline.report.page import write_report
from pipeline.report.table import result_table

__all__ = ["result_table", "write_report"]
