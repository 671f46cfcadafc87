"""Grids of runs: the cells of a sweep, and the processes that run them."""
