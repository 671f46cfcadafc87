"""Grids of runs: which cells a sweep has, and the processes that make them."""
