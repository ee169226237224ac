"""Which images are labeled: making such splits, and looking for what is wrong with them."""

from gmix.splits.audit import Audit, audit_split
from gmix.splits.make import Made, make_splits
from gmix.splits.order import label_counts, seeded_order, stratified_order
from gmix.splits.pixels import class_pixels

__all__ = [
    "Audit",
    "Made",
    "audit_split",
    "class_pixels",
    "label_counts",
    "make_splits",
    "seeded_order",
    "stratified_order",
]
