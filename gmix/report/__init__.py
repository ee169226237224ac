"""Results of trainings for people: the HTML report, figures, and sheets of pictures."""

from gmix.report.sheet import colour_mask, picture_sheet
from gmix.report.write import try_report, write_report

__all__ = ["colour_mask", "picture_sheet", "try_report", "write_report"]
