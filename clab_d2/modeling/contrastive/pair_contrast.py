"""What losses over pairs of embeddings share: the whole batch, memory, precision (docs/method.md,
'Other contrastive losses')."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.modeling.contrastive.base import ContrastiveFrame, ContrastiveLoss
from clab_d2.modeling.contrastive.embedding import Embedding
from clab_d2.modeling.contrastive.examples import Examples
from clab_d2.modeling.contrastive.memory import ContrastMemory
from clab_d2.modeling.contrastive.whole_batch import as_whole_batch_loss, gather_rows

Pairs = tuple[Tensor, Tensor, Tensor, Tensor]


class PairContrast(ContrastiveLoss):
    """A loss over positive and negative pairs of the embeddings of all GPUs.

    A subclass says what the examples are and which pairs of them are positive or negative. Pairs
    are of an anchor, which is an example of the batch, and of another of the batch or one that the
    memory holds. Remembered embeddings have no gradient; within the batch both sides have, as
    without a memory.
    """

    def __init__(self, embedding: Embedding, loss: nn.Module, memory_size: int = 0) -> None:
        """
        Args:
            embedding: conv and projection.
            loss: one of pytorch-metric-learning's, or of its kind: called with embeddings,
                ``indices_tuple`` (anchor, positive, anchor, negative) and ``ref_emb``.
            memory_size: embeddings of earlier steps to contrast with as well; 0: none.
        """
        super().__init__()
        self.embedding = embedding
        self.loss = loss
        self.memory = ContrastMemory(embedding.embed_dim, memory_size) if memory_size else None

    @staticmethod
    def common_arguments(cfg: CfgNode) -> dict[str, Any]:
        """Arguments of all these losses, from the config."""
        branch = cfg.MODEL.CONTRASTIVE
        return {"temperature": branch.TEMPERATURE, "memory_size": branch.MEMORY_SIZE}

    @abstractmethod
    def examples(self, frames: Sequence[ContrastiveFrame]) -> Examples:
        """What this process contrasts; see :meth:`ContrastiveLoss.forward`. There may be none, but
        the embeddings depend on the parameters."""

    @abstractmethod
    def pairs(self, anchors: Examples, others: Examples, remembered: bool) -> tuple[Tensor, Tensor]:
        """Which pairs are positive and which are negative; some may be neither.

        Args:
            anchors: N examples of the whole batch.
            others: M examples, the same or remembered ones.
            remembered: which of the two. Pairs of an example with itself are left out later.

        Returns:
            (N, M) bool each.
        """

    def forward(self, frames: Sequence[ContrastiveFrame]) -> Tensor:
        """See :meth:`ContrastiveLoss.forward`; 0 where there is no positive or no negative pair."""
        own = self.examples(frames)
        # Cosines over a temperature of 0.1 want full precision, whatever the autocast mode.
        full = torch.promote_types(own.embeddings.dtype, torch.float32)
        own = own._replace(embeddings=own.embeddings.to(full))
        with torch.autocast(own.embeddings.device.type, enabled=False):
            return as_whole_batch_loss(self.contrast(Examples(*map(gather_rows, own))))

    def contrast(self, batch: Examples) -> Tensor:
        """The loss of the whole batch, which is remembered then."""
        positive, negative = self.pairs(batch, batch, remembered=False)
        not_itself = ~torch.eye(len(positive), dtype=torch.bool, device=positive.device)
        masks, references = [(positive & not_itself, negative & not_itself)], [batch.embeddings]
        if self.memory is not None:
            old = self.memory.examples()
            masks.append(self.pairs(batch, old, remembered=True))
            references.append(old.embeddings.to(batch.embeddings))
        positive, negative = (torch.cat(parts, dim=1) for parts in zip(*masks, strict=True))
        pairs = (*positive.nonzero(as_tuple=True), *negative.nonzero(as_tuple=True))
        loss = self.loss_of_pairs(batch, torch.cat(references), pairs)
        if self.memory is not None:
            self.memory.add(batch)
        return loss

    def loss_of_pairs(self, batch: Examples, references: Tensor, pairs: Pairs) -> Tensor:
        """The loss, a scalar.

        Args:
            batch: N examples.
            references: (M, D) embeddings of the batch, then remembered ones.
            pairs: indices of anchors and positives, of anchors and negatives.
        """
        return self.loss(batch.embeddings, indices_tuple=pairs, ref_emb=references)


def checked_temperature(temperature: float) -> float:
    """The temperature, if it is one."""
    if temperature <= 0:
        raise ConfigError(
            f"MODEL.CONTRASTIVE.TEMPERATURE is {temperature}; it must be positive (the paper has "
            "0.1)"
        )
    return temperature
