"""Temporal RoI Align: RoI features of the key frame gather what is most similar in other frames.

Source: "Temporal ROI Align for Video Object Recognition" (AAAI 2021), with the constants of
MMTracking's release.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clab_d2.modeling import cpu_kernels, triton_most_similar
from clab_d2.modeling.most_similar import (
    MostSimilar,
    MostSimilarSearch,
    bin_interpolation,
    cosines_at,
    map_rows,
    weighted_rows,
)

# Working memory of the attention over frames, which goes a few RoIs at a time.
CHUNK_BYTES_CPU = 64 * 2**20
CHUNK_BYTES_CUDA = 2**30
# RoIs whose queries are held at a time for the compiled loops: enough for an efficient product.
_ROIS_AT_A_TIME = 32


class TemporalRoIAlign(nn.Module):
    """Aggregates RoI features over the key frame and its reference frames.

    1. In every reference map, each RoI bin's K most similar positions (by cosine) are found; a
       softmax over their K cosines weights the sum of their features.
    2. The bin's own and gathered features are weighted by attention between embeddings (a 3x3
       conv on the RoI features), per bin and head, and summed. Without heads: the plain mean.
    """

    def __init__(self, channels: int, num_most_similar: int = 2, num_heads: int = 4) -> None:
        """
        Args:
            channels: channels C of the feature maps.
            num_most_similar: K.
            num_heads: attention heads, dividing C; 0 for the mean over frames.
        """
        super().__init__()
        if num_heads and channels % num_heads:
            raise ValueError(f"{num_heads} attention heads do not divide {channels} channels")
        if num_most_similar < 1:
            raise ValueError("Temporal RoI Align needs at least one most similar position")
        self.num_most_similar = num_most_similar
        self.num_heads = num_heads
        self.embed = nn.Conv2d(channels, channels, 3, padding=1) if num_heads else None

    def forward(
        self,
        roi_features: Tensor,
        boxes: Tensor,
        feature: Tensor,
        references: Sequence[Tensor],
        counts: Sequence[int],
        *,
        scale: float,
        sampling_ratio: int,
        cat: Callable[[Sequence[Tensor]], Tensor] = torch.cat,
    ) -> Tensor:
        """
        Args:
            roi_features: (R, C, S, S), plain RoIAlign of ``feature`` at ``boxes``.
            boxes: (R, 4) xyxy in the key frame's image coordinates.
            feature: (C, h, w) feature map of the key frame.
            references: T feature maps (C, h_t, w_t).
            counts: how often each reference counts (a frame that is drawn twice counts twice).
            scale: feature pixels per image pixel.
            sampling_ratio: RoIAlign's, positive.
            cat: joins the references' maps, each as (h_t * w_t, C).

        Returns:
            (R, C, S, S).
        """
        if len(roi_features) == 0 or not references:
            return roi_features
        rows = [map_rows(reference) for reference in references]
        bins = roi_features.flatten(2).transpose(1, 2).flatten(0, 1).contiguous()
        similar = self.search(
            bins.detach(), boxes, feature.detach(), rows, scale=scale, sampling_ratio=sampling_ratio
        )
        if torch.is_grad_enabled():
            return self._aggregate_with_gradients(roi_features, bins, rows, similar, counts)
        return self.aggregate(roi_features, rows, cat(rows), similar, counts)

    def search(
        self,
        bins: Tensor,
        boxes: Tensor,
        feature: Tensor,
        references: Sequence[Tensor],
        *,
        scale: float,
        sampling_ratio: int,
    ) -> list[MostSimilar]:
        """Most similar positions of every bin in every reference."""
        size = math.isqrt(len(bins) // len(boxes))
        interpolation = bin_interpolation(
            boxes.to(torch.promote_types(boxes.dtype, feature.dtype)),
            size,
            scale,
            sampling_ratio,
            *feature.shape[-2:],
        )
        key_rows, rows = map_rows(feature), [reference.detach() for reference in references]
        found = triton_most_similar.try_search(
            bins, key_rows, interpolation, rows, self.num_most_similar
        )
        if found is not None:
            return triton_most_similar.per_reference(found, rows)
        # In half precision sums of squares overflow and cosines hardly differ.
        precise = torch.promote_types(bins.dtype, torch.float32)
        search = MostSimilarSearch(
            key_rows, interpolation, bins.norm(dim=1, dtype=precise), self.num_most_similar
        )
        return [search.in_map(reference) for reference in rows]

    def _aggregate_with_gradients(
        self,
        roi_features: Tensor,
        bins: Tensor,
        references: Sequence[Tensor],
        similar: Sequence[MostSimilar],
        counts: Sequence[int],
    ) -> Tensor:
        """The formula as it stands: few references, and a graph to keep small.

        Args:
            roi_features: (R, C, S, S).
            bins: the same, (N, C) with N = R * S * S.
            references: T maps, (P_t, C).
            similar: most similar positions, for each map.
            counts: how often each map counts.
        """
        num_rois, channels, size, _ = roi_features.shape
        gathered = torch.stack(
            [
                weighted_rows(
                    rows, found.positions, cosines_at(bins, rows, found.positions).softmax(dim=1)
                )
                for rows, found in zip(references, similar, strict=True)
            ]
        )
        gathered = gathered.view(-1, num_rois, size, size, channels).permute(0, 1, 4, 2, 3)
        if self.embed is None:
            total = torch.einsum("trcyx,t->rcyx", gathered, gathered.new_tensor(counts))
            return (roi_features + total) / (1 + sum(counts))
        frames = torch.cat([roi_features[None], gathered])
        shape = (len(frames), num_rois, self.num_heads, -1, size, size)
        embeddings = self.embed(frames.flatten(0, 1)).view(shape)
        logits = (embeddings * embeddings[:1]).sum(dim=3) / math.sqrt(channels / self.num_heads)
        logs = logits.new_tensor([0.0] + [math.log(count) for count in counts])
        weights = (logits + logs.view(-1, 1, 1, 1, 1)).softmax(dim=0)
        return (frames.view(shape) * weights[:, :, :, None]).sum(dim=0).flatten(1, 2)

    def aggregate(
        self,
        roi_features: Tensor,
        references: Sequence[Tensor],
        table: Tensor,
        similar: Sequence[MostSimilar],
        counts: Sequence[int],
    ) -> Tensor:
        """The same without gradients, a few RoIs at a time, and no reference is ever embedded.

        The embedding of a reference is needed only for its dot product with the own embedding e0,
        and the 3x3 conv W is linear, so with u[d, h] = W[d, h]^T e0[h] for each of its 9 offsets d
        and each head h, the product at a bin is the sum over d of u[d, h] . M(bin + d) plus
        e0[h] . bias (docs/method.md, 'Where the time goes', c).

        Args: as :meth:`_aggregate_with_gradients`, and
            table: (P, C) all maps, one after the other.
        """
        num_rois, channels, size, _ = roi_features.shape
        num_bins, num_refs = size * size, len(references)
        own = roi_features.permute(0, 2, 3, 1)
        offsets = [0]
        for rows in references[:-1]:
            offsets.append(offsets[-1] + len(rows))
        # Maps smaller than K positions offer fewer; they repeat one with no weight.
        positions = torch.stack(
            [
                F.pad(found.positions, (0, self.num_most_similar - found.positions.shape[1]))
                + offset
                for found, offset in zip(similar, offsets, strict=True)
            ],
            dim=1,
        ).view(num_rois, num_bins * num_refs, -1)
        weights = torch.stack(
            [
                F.pad(
                    found.cosines.softmax(dim=1),
                    (0, self.num_most_similar - found.cosines.shape[1]),
                )
                for found in similar
            ],
            dim=1,
        ).view(positions.shape)

        embedded = None
        if self.embed is not None:
            # RoIs are small maps, for which a CPU's convs are faster in the plain layout.
            maps = roi_features if roi_features.is_cuda else roi_features.contiguous()
            embedded = self.embed(maps).permute(0, 2, 3, 1)
        if embedded is not None and cpu_kernels.are_available(own, embedded, table):
            output = own.new_empty(own.shape, dtype=torch.float32)
            self._attend_compiled(own, embedded, table, positions, weights, counts, output)
            return output.to(own.dtype).permute(0, 3, 1, 2)
        output = torch.empty_like(own, memory_format=torch.contiguous_format)
        budget = CHUNK_BYTES_CUDA if own.is_cuda else CHUNK_BYTES_CPU
        per_roi = num_bins * channels * (num_refs + 9 * self.num_heads) * own.element_size()
        step = max(1, budget // per_roi)
        for start in range(0, num_rois, step):
            chunk = slice(start, min(start + step, num_rois))
            gathered = weighted_rows(
                table, positions[chunk].flatten(0, 1), weights[chunk].flatten(0, 1)
            ).view(-1, num_refs, channels)
            if embedded is None:
                total = torch.einsum("ntc,t->nc", gathered, gathered.new_tensor(counts))
                output[chunk] = (own[chunk] + total.view_as(own[chunk])) / (1 + sum(counts))
            else:
                output[chunk] = self._attend(own[chunk], embedded[chunk], gathered, counts)
        return output.permute(0, 3, 1, 2)

    def _attend_compiled(
        self,
        own: Tensor,
        embedded: Tensor,
        table: Tensor,
        positions: Tensor,
        weights: Tensor,
        counts: Sequence[int],
        output: Tensor,
    ) -> None:
        """:meth:`_attend` for all RoIs by compiled loops; writes ``output``.

        Args:
            own, embedded, output: (R, S, S, C).
            table: (P, C) all reference maps.
            positions, weights: (R, S * S * T, K) of the most similar rows.
            counts: how often each of the T references counts.
        """
        assert self.embed is not None
        num_rois, size, _, channels = own.shape
        heads, per_head, num_bins = self.num_heads, channels // self.num_heads, size * size
        # The products in whatever precision holds, the loops in single precision.
        kernel = self.embed.weight.to(embedded.dtype).view(heads, per_head, channels, 9)
        kernel = kernel.permute(0, 1, 3, 2).reshape(heads, per_head, 9 * channels)
        bias = self.embed.bias if self.embed.bias is not None else own.new_zeros(channels)
        own, bias, table, weights = (t.float().contiguous() for t in (own, bias, table, weights))
        log_counts = own.new_tensor(counts).log()
        step = min(_ROIS_AT_A_TIME, num_rois) * num_bins
        room = own.new_empty(heads * step * 9 * channels)
        by_head = embedded.reshape(-1, heads, per_head)
        for start in range(0, num_rois, _ROIS_AT_A_TIME):
            chunk = slice(start, min(start + _ROIS_AT_A_TIME, num_rois))
            bins = slice(chunk.start * num_bins, chunk.stop * num_bins)
            shape = (heads, bins.stop - bins.start, 9 * channels)
            queries = room[: math.prod(shape)].view(shape)
            for head in range(heads):
                if by_head.dtype == queries.dtype:
                    torch.mm(by_head[bins, head], kernel[head], out=queries[head])
                else:
                    queries[head] = by_head[bins, head] @ kernel[head]
            cpu_kernels.attend(
                queries.unflatten(2, (9, channels)),
                own[chunk],
                embedded[chunk].float().contiguous(),
                bias,
                table,
                positions[chunk].unflatten(1, (num_bins, -1)).flatten(0, 1),
                weights[chunk].unflatten(1, (num_bins, -1)).flatten(0, 1),
                log_counts,
                output[chunk],
            )

    def _attend(
        self, own: Tensor, embedded: Tensor, gathered: Tensor, counts: Sequence[int]
    ) -> Tensor:
        """Attention over frames for some RoIs.

        Args:
            own: (R, S, S, C) RoI features.
            embedded: (R, S, S, C) their embeddings.
            gathered: (R * S * S, T, C) most similar features of T references.
            counts: how often each reference counts.

        Returns:
            (R, S, S, C).
        """
        assert self.embed is not None
        num_rois, size, _, channels = own.shape
        heads, per_head = self.num_heads, channels // self.num_heads
        num_bins = num_rois * size * size
        by_head = embedded.reshape(num_rois, size, size, heads, per_head)
        padded = F.pad(by_head, (0, 0, 0, 0, 1, 1, 1, 1))
        offsets = [(dy, dx) for dy in range(3) for dx in range(3)]
        # At position s, offset d: the embedding of bin s - d, whose conv looks at s through W[d].
        looking = torch.stack(
            [padded[:, 2 - dy : 2 - dy + size, 2 - dx : 2 - dx + size] for dy, dx in offsets]
        )
        looking = looking.permute(0, 4, 1, 2, 3, 5).reshape(9 * heads, num_bins, per_head)
        kernel = self.embed.weight.to(own.dtype).view(heads, per_head, channels, 9)
        kernel = kernel.permute(3, 0, 1, 2).reshape(9 * heads, per_head, channels)
        queries = torch.bmm(looking, kernel)
        products = torch.bmm(gathered, queries.permute(1, 2, 0))
        products = products.view(num_rois, size, size, -1, 9, heads)
        padded = F.pad(products, (0, 0, 0, 0, 0, 0, 1, 1, 1, 1))
        logits = sum(
            padded[:, dy : dy + size, dx : dx + size, :, index]
            for index, (dy, dx) in enumerate(offsets)
        )
        if self.embed.bias is not None:
            bias = self.embed.bias.to(own.dtype).view(heads, per_head)
            logits = logits + (by_head * bias).sum(dim=-1)[..., None, :]
        logits = torch.cat([(by_head * by_head).sum(dim=-1)[..., None, :], logits], dim=3)
        logs = logits.new_tensor([0.0] + [math.log(count) for count in counts])
        weights = (logits / math.sqrt(per_head) + logs[:, None]).softmax(dim=3)
        # (bins, heads, 1, T) x (bins, heads, T, C / heads)
        weights = weights.view(num_bins, -1, heads).transpose(1, 2)
        values = gathered.view(num_bins, -1, heads, per_head).transpose(1, 2)
        total = torch.matmul(weights[:, :, None, 1:], values)[:, :, 0]
        total = total + weights[:, :, :1] * own.reshape(num_bins, heads, per_head)
        return total.reshape(own.shape)
