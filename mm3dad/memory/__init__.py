"""Banks of normal features: global and local, their coreset and their search."""

from mm3dad.memory.bank import Bank
from mm3dad.memory.coreset import select_coreset

__all__ = ["Bank", "select_coreset"]
