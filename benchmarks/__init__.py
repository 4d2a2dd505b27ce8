"""What this package costs, beside what its peers cost: `python -m benchmarks`, or one script per question."""
