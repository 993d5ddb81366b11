"""Optical flow by RAFT, a trained network.

Source: "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow" (ECCV 2020). The network and
its weights are torchvision's small model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.optical_flow import Raft_Small_Weights, raft_small

from clab_d2.checkpoint.safe_load import load_weights_file
from clab_d2.errors import ConfigError
from clab_d2.modeling.aggregation.optical_flow import OpticalFlow, resized

_WEIGHTS_KEY = "MODEL.FLOW_GUIDED.FLOW_WEIGHTS"
# Pairs of frames whose flow is computed together; each has a correlation of all positions with all.
_PAIRS_PER_BATCH = 8


class RAFTFlow(OpticalFlow):
    """Optical flow by torchvision's RAFT-small, in two parts: of one frame, and of a pair.

    It computes in the precision of its own weights, under autocast too, at a resolution of its own.

    The weights of ``weights`` are read when they are first needed. Weights of the whole detector
    hold the flow network's, so where such are loaded, that file need not be there.
    """

    # What RAFT's encoders divide a side by, and the least side: four levels of correlation, each
    # half the one before, of which the last is to have two positions.
    stride, min_side = 8, 128

    def __init__(
        self,
        *,
        weights: str,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        channel_order: str = "RGB",
        scale: float = 0.5,
        num_updates: int = 12,
        trained: bool = False,
    ) -> None:
        """
        Args:
            weights: "torchvision" for those that torchvision offers (fetched once, into PyTorch's
                hub folder), a file that holds such, or "random".
            pixel_mean, pixel_std, channel_order, scale: see :class:`OpticalFlow`.
            num_updates: RAFT's refinements of the flow.
            trained: whether its weights are trained; else they stay as they are.
        """
        super().__init__(
            pixel_mean=pixel_mean, pixel_std=pixel_std, channel_order=channel_order, scale=scale
        )
        self.weights = weights
        self.num_updates = num_updates
        self.raft = raft_small(weights=None).requires_grad_(trained)
        self._has_weights = weights == "random"

    # ---------------------------------------------------------------- weights

    def _read_weights(self) -> None:
        """Read the network's weights, unless they are there.

        Raises:
            ConfigError: one line, where there are none.
            DataError: one line, where the file can't be read.
        """
        if not self._has_weights:
            self.raft.load_state_dict(read_raft_weights(self.weights, self.raft.state_dict()))
            self._has_weights = True

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Weights without a flow network (a backbone's, to start from) leave its own in place."""
        present = [prefix + name in state_dict for name in self.state_dict()]
        if all(present):
            self._has_weights = True
        elif not any(present) and self.weights != "random":
            self._read_weights()
            state_dict.update({prefix + name: w for name, w in self.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # ---------------------------------------------------------------- of one frame

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and context of each frame.

        Args:
            images: (N, 3, H, W), normalised.

        Returns:
            (N, 128, h, w) and (N, 160, h, w), at an eighth of :meth:`size_for`.
        """
        self._read_weights()
        with torch.autocast(images.device.type, enabled=False):
            # RAFT takes colours from -1 to 1.
            pixels = self.pixels(images, self._dtype) / 127.5 - 1
            return self.raft.feature_encoder(pixels), self.raft.context_encoder(pixels)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.raft.parameters()).dtype

    # ---------------------------------------------------------------- of pairs

    def forward(self, key: Sequence[Tensor], references: Sequence[Sequence[Tensor]]) -> Tensor:
        """See :meth:`OpticalFlow.forward`; (T, 2, h, w) at an eighth of :meth:`size_for`."""
        features, context = key
        size = features.shape[-2:]
        flows = []
        with torch.autocast(features.device.type, enabled=False):
            for start in range(0, len(references), _PAIRS_PER_BATCH):
                chosen = references[start : start + _PAIRS_PER_BATCH]
                others = torch.cat([resized(of_one, size) for of_one, _ in chosen])
                flows.append(self._flow(features, context, others))
        return torch.cat(flows)

    def _flow(self, features: Tensor, context: Tensor, others: Tensor) -> Tensor:
        """RAFT's refinement of the flow from one frame to T others (its paper, section 3).

        Args:
            features: (1, 128, h, w).
            context: (1, 160, h, w).
            others: (T, 128, h, w) features.
        """
        number, _, height, width = others.shape
        hidden_size = self.raft.update_block.hidden_state_size
        hidden, context = context.expand(number, -1, -1, -1).tensor_split([hidden_size], dim=1)
        hidden, context = hidden.tanh(), context.relu()
        # A copy, since it keeps the correlations that it makes.
        correlation = copy.copy(self.raft.corr_block)
        correlation.build_pyramid(
            features.contiguous().expand(number, -1, -1, -1), others.contiguous()
        )
        ys = torch.arange(height, device=others.device, dtype=others.dtype)
        xs = torch.arange(width, device=others.device, dtype=others.dtype)
        origin = torch.stack(torch.meshgrid(xs, ys, indexing="xy"))[None].expand(number, -1, -1, -1)
        target = origin
        for _ in range(self.num_updates):
            target = target.detach()
            found = correlation.index_pyramid(centroids_coords=target)
            hidden, change = self.raft.update_block(hidden, context, found, target - origin)
            target = target + change
        return (target - origin) / others.new_tensor([width, height]).view(1, 2, 1, 1)


def read_raft_weights(source: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision's RAFT-small.

    Args:
        source: "torchvision", or a file.
        wanted: weights of the names and shapes that there must be.

    Raises:
        ConfigError: one line, where they are not at hand or are another network's.
        DataError: one line, where the file can't be read.
    """
    if source == "torchvision":
        offered = Raft_Small_Weights.C_T_V2
        try:
            return dict(offered.get_state_dict(progress=False, check_hash=True, weights_only=True))
        except (OSError, RuntimeError) as error:  # no network, or not the file that was meant
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise ConfigError(
                f"{_WEIGHTS_KEY} 'torchvision': {Path(offered.url).name} can't be fetched "
                f"({error}); put that file into {folder}, name it with this key, or take "
                "MODEL.FLOW_GUIDED.FLOW DIS, which needs no weights"
            ) from None
    if not Path(source).is_file():
        raise ConfigError(
            f"{_WEIGHTS_KEY} {source!r}: there is no such file; name one with the weights of "
            "torchvision's raft_small, or take 'torchvision' to have them fetched"
        )
    content = load_weights_file(source)
    weights = content.get("model", content)
    unlike = [
        name
        for name, value in wanted.items()
        if getattr(weights.get(name), "shape", None) != value.shape
    ]
    if unlike or len(weights) != len(wanted):
        raise ConfigError(
            f"{_WEIGHTS_KEY} {source}: not the weights of torchvision's raft_small "
            f"({unlike[0] + ' is not as there' if unlike else 'it holds others, too'}); name a "
            "file that holds them, or take 'torchvision' to have them fetched"
        )
    return weights
