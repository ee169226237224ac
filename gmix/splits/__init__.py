"""Splits into labeled and unlabeled images: making them, and checking them for errors."""

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
