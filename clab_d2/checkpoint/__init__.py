"""Weights of other projects, read safely and renamed to ours."""
