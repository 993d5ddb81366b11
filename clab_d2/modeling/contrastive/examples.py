"""What is contrasted: embeddings, and what each is an example of."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

#: Label of an example of which nobody knows what it is.
UNKNOWN = -1


class Examples(NamedTuple):
    """Embeddings of N frames or objects.

    Attributes:
        embeddings: (N, D).
        labels: (N,) int64; examples of one label are alike. UNKNOWN where it is not known.
        videos: (N,) int64; where each comes from, told apart in every process and run.
        weights: (N,) how much each counts as an anchor, for losses that weight.
    """

    embeddings: Tensor
    labels: Tensor
    videos: Tensor
    weights: Tensor
