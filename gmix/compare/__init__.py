"""Which method is best on your images: several of them trained alike, and one table."""

from gmix.compare.results import Comparison
from gmix.compare.run import compare

__all__ = ["Comparison", "compare"]
