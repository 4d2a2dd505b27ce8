"""Datasets and single samples: readers, organised-cloud geometry, cleaning and checks."""

from mm3dad.data._dataset import Dataset, Record

__all__ = ["Dataset", "Record"]
