"""The backends compute what the formula says, in few RoIs at a time or many."""

from __future__ import annotations

import formulas
import pytest
import torch

from clab_d2.layers import numba_support
from clab_d2.layers.frame_attention import (
    EmbeddedMaps,
    FrameEmbedding,
    FrameRows,
    attend_over_frames,
    attend_to_embedded_maps,
    embed_map,
    mean_over_frames,
    numba,
    pytorch,
)
from clab_d2.layers.roi_pooling import BinInterpolation

BACKENDS = [
    pytest.param(pytorch, id="pytorch"),
    pytest.param(
        numba,
        id="numba",
        marks=pytest.mark.skipif(
            not numba.is_available(torch.zeros(1)), reason="Numba is not installed"
        ),
    ),
]


def make_case(num_rois, num_refs, k, num_heads, *, size=4, channels=8, bias=True, seed=0):
    """Features, rows and embedding, in double precision."""
    torch.manual_seed(seed)
    features = torch.randn(num_rois, size, size, channels, dtype=torch.float64)
    table = torch.randn(30, channels, dtype=torch.float64)
    num_bins = num_rois * size * size
    rows = FrameRows(
        table,
        torch.randint(len(table), (num_bins, num_refs, k)),
        torch.rand(num_bins, num_refs, k, dtype=torch.float64),
        # A frame that is drawn more than once counts as often.
        [1 + index % 3 for index in range(num_refs)],
    )
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=bias).double()
    own = conv(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach()
    bias = None if conv.bias is None else conv.bias.detach()
    return features, rows, FrameEmbedding(own, conv.weight.detach(), bias, num_heads)


def in_precision(case, dtype):
    features, rows, embedding = case
    return (
        features.to(dtype),
        rows._replace(table=rows.table.to(dtype), weights=rows.weights.to(dtype)),
        embedding._replace(own=embedding.own.to(dtype)),
    )


def attended(case):
    features, rows, embedding = case
    gathered = formulas.gather(rows.table, rows.positions, rows.weights)
    return formulas.attend_over_frames(
        features, gathered, rows.counts, embedding.weight, embedding.bias, embedding.num_heads
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("num_refs", [1, 3, 5])
@pytest.mark.parametrize("threads", [1, 2])
def test_attention_equals_the_formula(backend, num_heads, k, num_refs, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    # More RoIs than a backend takes at a time.
    monkeypatch.setattr(pytorch, "CHUNK_BYTES_CPU", 2**15)
    case = make_case(37, num_refs, k, num_heads)
    actual = backend.attend(*in_precision(case, torch.float32))
    assert actual.dtype == torch.float32 and actual.is_contiguous()
    torch.testing.assert_close(actual.double(), attended(case), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_by_an_embedding_without_bias(backend):
    case = make_case(5, 3, 2, 4, bias=False)
    actual = backend.attend(*in_precision(case, torch.float32))
    torch.testing.assert_close(actual.double(), attended(case), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("num_refs", [1, 4])
def test_mean_equals_the_formula(k, num_refs, monkeypatch):
    monkeypatch.setattr(pytorch, "CHUNK_BYTES_CPU", 2**12)
    features, rows, _ = make_case(9, num_refs, k, 1)
    gathered = formulas.gather(rows.table, rows.positions, rows.weights)
    expected = formulas.mean_over_frames(features, gathered, rows.counts)
    torch.testing.assert_close(mean_over_frames(features, rows), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_takes_a_backend_that_fits(dtype, monkeypatch):
    """Double precision is computed in double precision, single precision without Numba, too."""
    monkeypatch.setattr(numba_support, "load_loops", lambda name: None)
    case = make_case(5, 3, 2, 4)
    actual = attend_over_frames(*in_precision(case, dtype))
    assert actual.dtype == dtype
    expected = attended(case)
    torch.testing.assert_close(actual, expected.to(dtype))


HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


AUTOCAST = pytest.mark.parametrize("autocast", [False, True], ids=["half", "autocast"])


@pytest.mark.parametrize("backend", BACKENDS)
@AUTOCAST
@HALF
def test_attention_in_half_precision(backend, autocast, dtype):
    case = make_case(5, 3, 2, 4)
    with torch.autocast("cpu", dtype, enabled=autocast):
        actual = backend.attend(*in_precision(case, dtype))
    assert actual.dtype == dtype
    rounding = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(actual.double(), attended(case), atol=rounding, rtol=rounding)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("magnitude", [30, 300, 1e4], ids="{:g}".format)
@AUTOCAST
@HALF
def test_attention_by_large_embeddings_in_half_precision(backend, magnitude, autocast, dtype):
    """Half precision holds the embeddings, but fp16, which ends at 65504, not their products."""
    features, rows, embedding = make_case(5, 3, 1, 4, channels=32, bias=False)
    # References that are multiples of the own features, so that one clearly wins.
    table = features.flatten(0, 2)
    rows = FrameRows(
        torch.cat([0.5 * table, 1.5 * table, -2 * table]),
        torch.arange(3 * len(table)).view(3, -1).T[..., None],
        torch.ones(len(table), 3, 1, dtype=torch.float64),
        [1, 3, 2],
    )
    by = magnitude / embedding.own.abs().max()
    embedding = embedding._replace(own=by * embedding.own, weight=by * embedding.weight)
    case = (features, rows, embedding)
    expected = attended(case)
    torch.testing.assert_close(expected, 1.5 * features, atol=1e-3, rtol=1e-3)
    with torch.autocast("cpu", dtype, enabled=autocast):
        actual = backend.attend(*in_precision(case, dtype))
    rounding = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(actual.double(), expected, atol=rounding, rtol=rounding)


@HALF
def test_mean_of_large_features_in_half_precision(dtype):
    features, rows, _ = make_case(3, 2, 1, 1)
    features, rows = 3e4 * features.sign(), rows._replace(table=3e4 * rows.table.sign())
    rows = rows._replace(weights=torch.ones_like(rows.weights), counts=[3, 5])
    gathered = formulas.gather(rows.table, rows.positions, rows.weights)
    expected = formulas.mean_over_frames(features, gathered, rows.counts)
    single = rows._replace(table=rows.table.to(dtype), weights=rows.weights.to(dtype))
    actual = mean_over_frames(features.to(dtype), single)
    assert actual.dtype == dtype
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(actual.double(), expected, atol=3e4 * rounding, rtol=rounding)


def make_maps(num_rois, lengths, k, num_heads, *, size=4, channels=8, bias=True):
    """RoI bins and what they gather as weighted sums of maps' positions, in double precision."""
    torch.manual_seed(k)
    own_map, *maps = (torch.randn(n, channels, dtype=torch.float64) for n in (20, *lengths))
    num_bins = num_rois * size * size
    weights = torch.rand(num_bins, 6, dtype=torch.float64)
    weights[torch.rand(weights.shape) < 0.3] = 0
    weights[3] = 0  # a bin outside the map
    interpolation = BinInterpolation(torch.randint(len(own_map), weights.shape), weights)
    features = interpolation.of(own_map).view(num_rois, size, size, channels)
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    positions = [
        start + torch.randint(length, (num_bins, k))
        for start, length in zip(starts, lengths, strict=True)
    ]
    shares = torch.rand(num_bins, len(lengths), k, dtype=torch.float64)
    counts = [1 + index % 3 for index in range(len(lengths))]
    rows = FrameRows(torch.cat(maps), torch.stack(positions, dim=1), shares, counts)
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=bias).double()
    return features, rows, conv.requires_grad_(False), own_map, maps, interpolation


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"]
)
def test_attention_to_embedded_maps_equals_the_formula(
    backend, num_heads, k, threads, bias, dtype, monkeypatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    features, rows, conv, own_map, maps, interpolation = make_maps(
        7, [9, 1, 12], k, num_heads, bias=bias
    )
    gathered = formulas.gather(rows.table, rows.positions, rows.weights)
    expected = formulas.attend_over_frames(
        features, gathered, rows.counts, conv.weight, conv.bias, num_heads
    )
    embedded = [embed_map(m.to(dtype), conv.weight.float()) for m in (own_map, *maps)]
    assert all(m.dtype == torch.float32 for m in embedded)
    actual = backend.attend_to_embedded(
        features.to(dtype),
        rows._replace(table=rows.table.to(dtype), weights=rows.weights.float()),
        EmbeddedMaps(
            embedded[0],
            BinInterpolation(interpolation.positions, interpolation.weights.float()),
            embedded[1:],
            None if conv.bias is None else conv.bias.float(),
            num_heads,
        ),
    )
    assert actual.dtype == dtype and actual.is_contiguous()
    rounding = 1e-5 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(actual.double(), expected, atol=rounding, rtol=rounding)


def test_an_embedded_map_sums_up_to_the_convolution():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(8, 6, 3, padding=1, bias=False)
    feature = torch.randn(8, 5, 7)
    embedded = embed_map(feature.flatten(1).T, conv.weight).view(5, 7, 9, 6)
    total = torch.zeros(5, 7, 6)
    for offset in range(9):
        down, along = offset // 3 - 1, offset % 3 - 1
        for y in range(5):
            for x in range(7):
                if 0 <= y + down < 5 and 0 <= x + along < 7:
                    total[y, x] += embedded[y + down, x + along, offset]
    torch.testing.assert_close(total.permute(2, 0, 1), conv(feature), atol=1e-5, rtol=1e-4)


def test_embedded_maps_in_double_precision():
    features, rows, conv, own_map, maps, interpolation = make_maps(3, [9, 12], 2, 4)
    gathered = formulas.gather(rows.table, rows.positions, rows.weights)
    expected = formulas.attend_over_frames(
        features, gathered, rows.counts, conv.weight, conv.bias, 4
    )
    own, *embedded = (embed_map(m, conv.weight) for m in (own_map, *maps))
    embedded = EmbeddedMaps(own, interpolation, embedded, conv.bias, 4)
    torch.testing.assert_close(attend_to_embedded_maps(features, rows, embedded), expected)
