"""Trained detectors written for other runtimes (docs/export.md)."""
