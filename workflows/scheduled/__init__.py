"""Scheduled workflows: what a file says, when its runs are due, and each step once."""
