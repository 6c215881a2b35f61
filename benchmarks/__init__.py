"""Paired comparisons with the libraries a user would pick instead; `python -m benchmarks`."""
