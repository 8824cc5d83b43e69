"""Measured ratios of this package against the naive twin and EasyEdit; `python -m benchmarks` runs all of it."""
