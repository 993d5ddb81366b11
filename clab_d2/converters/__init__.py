"""Annotations of other formats -> CocoVID JSON, and the checker of such files."""
