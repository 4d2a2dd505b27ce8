"""The rows of the benchmark: each file here has `ROWS`, name -> a function that makes the row (see benchmarks/harness.py)."""
