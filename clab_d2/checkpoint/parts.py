"""Which parts of a model some of its weights make up, in as few words as possible."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def name_parts(names: Iterable[str], others: Collection[str], most: int = 6) -> str:
    """Sum weights up by the modules that they fill.

    Args:
        names: the weights to be named, such as ``roi_heads.box_head.fc1.weight``.
        others: all weights that are not meant; a module is named only if none of these is in it.
        most: how many modules to name.

    Returns:
        The largest such modules, joined by commas in the order of ``names``: with nothing else
        under ``roi_heads`` that is "roi_heads". A weight beside others stands under its own name.
    """
    occupied = {prefix for name in others for prefix in _prefixes(name)}
    parts = dict.fromkeys(
        next((prefix for prefix in _prefixes(name) if prefix not in occupied), name)
        for name in names
    )
    shown = list(parts)[:most]
    if len(parts) > most:
        shown.append(f"and {len(parts) - most} more")
    return ", ".join(shown)


def _prefixes(name: str) -> list[str]:
    """``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``."""
    words = name.split(".")
    return [".".join(words[:depth]) for depth in range(1, len(words) + 1)]
