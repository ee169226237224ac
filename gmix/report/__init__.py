"""Pictures of what a model does."""

from gmix.report.sheet import colour_mask, picture_sheet

__all__ = ["colour_mask", "picture_sheet"]
