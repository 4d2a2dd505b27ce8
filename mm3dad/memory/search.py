"""Exact nearest rows: the torch search every bank uses, and faiss for those who prefer it."""
