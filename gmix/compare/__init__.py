"""Comparisons of methods on your images: several are trained under identical settings, and shown in a table."""

from gmix.compare.results import Comparison
from gmix.compare.run import compare

__all__ = ["Comparison", "compare"]
