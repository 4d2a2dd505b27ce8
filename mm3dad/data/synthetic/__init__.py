"""Synthetic parts with defects, written in the raw layout of MVTec 3D-AD (docs/synthetic.md)."""

from __future__ import annotations

from mm3dad.data.synthetic.write import CATEGORIES, COUNTS, DEFECTS, VERSION, write_dataset

__all__ = ["CATEGORIES", "COUNTS", "DEFECTS", "VERSION", "write_dataset"]
