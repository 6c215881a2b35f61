"""Sweeps through Ray Tune: what a file says, its trials, and what came of them."""
