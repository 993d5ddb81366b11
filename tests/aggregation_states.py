"""Weights of the release's aggregators under our names."""

from __future__ import annotations

import torch

RENAMED = {"fc_embed": "query", "ref_fc_embed": "key", "ref_fc": "value", "fc": "output"}


def block_state(arrays, prefix: str) -> dict[str, torch.Tensor]:
    return {
        f"{ours}.{kind}": torch.from_numpy(arrays[f"{prefix}{theirs}.{kind}"])
        for theirs, ours in RENAMED.items()
        for kind in ("weight", "bias")
    }
