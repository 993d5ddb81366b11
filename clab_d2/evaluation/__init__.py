"""Evaluation: the VID metric and the evaluator that computes it."""
