"""Banks of normal features: global and local, their coreset and their search."""

from mm3dad.memory.bank import Bank
from mm3dad.memory.coreset import select_coreset
from mm3dad.memory.flat import FlatBank
from mm3dad.memory.layered import LayeredBank

__all__ = ["Bank", "FlatBank", "LayeredBank", "select_coreset"]
