"""Baselines: comparisons that learn weights or solve a closed form; their results are no prompt sets."""
