"""Embeddings of earlier steps, so that small batches have negatives."""

from __future__ import annotations

import torch
from pytorch_metric_learning.losses import CrossBatchMemory

from clab_d2.errors import ConfigError
from clab_d2.modeling.contrastive.examples import Examples


class ContrastMemory(CrossBatchMemory):
    """pytorch-metric-learning's cross-batch memory, of which the queue is used.

    Source: "Cross-Batch Memory for Embedding Learning" (XBM, CVPR 2020). Which remembered examples
    are positive or negative, a :class:`~clab_d2.modeling.contrastive.pair_contrast.PairContrast`
    decides. Three things differ from the library's:

    * An example has a label and a video.
    * All of its state is in buffers, so that a checkpoint holds it and resuming is exact.
    * A batch may be of any size, also empty or larger than the memory.

    Every process has to add the same examples, those of the whole batch.
    """

    def __init__(self, embedding_size: int, memory_size: int) -> None:
        """
        Args:
            embedding_size: D, numbers in an embedding.
            memory_size: M, examples that are held; the oldest make room.
        """
        if memory_size < 1:
            raise ConfigError(
                f"MODEL.CONTRASTIVE.MEMORY_SIZE is {memory_size}; give the number of embeddings "
                "to remember, or 0 for no memory"
            )
        super().__init__(None, embedding_size, memory_size)

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """The queue serves any loss."""

    def reset_queue(self) -> None:
        """Forget everything."""
        self.register_buffer("embedding_memory", torch.zeros(self.memory_size, self.embedding_size))
        self.register_buffer("label_memory", torch.zeros(self.memory_size, 2, dtype=torch.int64))
        self.register_buffer("state", torch.zeros(2, dtype=torch.int64))

    @property
    def queue_idx(self) -> int:
        """Place of the next example."""
        return int(self.state[0])

    @queue_idx.setter
    def queue_idx(self, index: int) -> None:
        self.state[0] = index

    @property
    def has_been_filled(self) -> bool:
        """Whether every place is taken."""
        return bool(self.state[1])

    @has_been_filled.setter
    def has_been_filled(self, filled: bool) -> None:
        self.state[1] = filled

    def examples(self) -> Examples:
        """What is remembered, without gradients; an anchor is none of it."""
        length = self.memory_size if self.has_been_filled else self.queue_idx
        embeddings, labels = self.embedding_memory[:length], self.label_memory[:length]
        return Examples(embeddings, *labels.unbind(1), embeddings.new_zeros(length))

    def add(self, examples: Examples) -> None:
        """Remember examples, in place of the oldest."""
        labels = torch.stack([examples.labels, examples.videos], dim=1)[-self.memory_size :]
        if len(labels) == 0:  # the library would take the memory for filled
            return
        embeddings = examples.embeddings[-self.memory_size :].to(self.embedding_memory.dtype)
        self.add_to_memory(embeddings, labels, len(labels))
