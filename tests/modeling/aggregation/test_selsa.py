from __future__ import annotations

import numpy as np
import torch
from detectron2.layers import ShapeSpec

from clab_d2.modeling.aggregation.selsa import KeyValue, SELSABlock, SELSABoxHead, log_counts_of

RENAMED = {"fc_embed": "query", "ref_fc_embed": "key", "ref_fc": "value", "fc": "output"}


def block_state(arrays, prefix: str) -> dict[str, torch.Tensor]:
    return {
        f"{ours}.{kind}": torch.from_numpy(arrays[f"{prefix}{theirs}.{kind}"])
        for theirs, ours in RENAMED.items()
        for kind in ("weight", "bias")
    }


def test_block_equals_the_release(golden):
    arrays = np.load(golden("selsa_aggregator.npz"))
    block = SELSABlock(64, int(arrays["num_attention_blocks"]))
    block.load_state_dict(block_state(arrays, "w/"))
    out = block(
        torch.from_numpy(arrays["x"]), block.encode_references(torch.from_numpy(arrays["ref_x"]))
    )
    np.testing.assert_allclose(out.detach().numpy(), arrays["out"], atol=1e-5)


def test_box_head_equals_the_release(golden):
    arrays = np.load(golden("selsa_box_head.npz"))
    head = SELSABoxHead(
        ShapeSpec(channels=32, height=7, width=7),
        fc_dims=[64] * 3,
        num_heads=int(arrays["num_attention_blocks"]),
    )
    state = {}
    for index in range(3):
        for kind in ("weight", "bias"):
            state[f"fcs.{index}.{kind}"] = torch.from_numpy(
                arrays[f"w/shared_fcs.{index}.{kind}"]
            )
        block = block_state(arrays, f"w/aggregator.{index}.")
        state.update({f"selsa.{index}.{name}": value for name, value in block.items()})
    head.load_state_dict(state)
    features = head(
        torch.from_numpy(arrays["x"]), head.encode_references(torch.from_numpy(arrays["ref_x"]))
    )
    for name, key in (("fc_cls", "cls_score"), ("fc_reg", "bbox_pred")):
        weight, bias = (torch.from_numpy(arrays[f"w/{name}.{kind}"]) for kind in ("weight", "bias"))
        out = torch.nn.functional.linear(features, weight, bias)
        np.testing.assert_allclose(out.detach().numpy(), arrays[key], atol=1e-4)


def join(parts):
    return KeyValue(*(torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True)))


def test_log_counts_equal_repeating_the_references():
    torch.manual_seed(0)
    block = SELSABlock(32, 4).double()
    x = torch.randn(5, 32).double()
    frames = [torch.randn(3, 32).double(), torch.randn(2, 32).double()]
    repeated = block(x, block.encode_references(torch.cat([frames[0], frames[1], frames[1]])))
    counted = block(
        x,
        join([block.encode_references(frame) for frame in frames]),
        log_counts_of([1, 2], [3, 2], x),
    )
    torch.testing.assert_close(counted, repeated)


def test_equal_counts_need_no_bias():
    assert log_counts_of([3, 3], [4, 5], torch.zeros(1)) is None


def test_encoding_frame_by_frame_equals_encoding_together():
    torch.manual_seed(0)
    head = SELSABoxHead(ShapeSpec(channels=4, height=3, width=3), fc_dims=[16, 16], num_heads=4)
    first, second = torch.randn(5, 4, 3, 3), torch.randn(2, 4, 3, 3)
    together = head.encode_references(torch.cat([first, second]))
    apart = [
        join(parts)
        for parts in zip(
            head.encode_references(first), head.encode_references(second), strict=True
        )
    ]
    for left, right in zip(together, apart, strict=True):
        torch.testing.assert_close(left.keys, right.keys)
        torch.testing.assert_close(left.values, right.values)


def test_without_heads_it_is_a_plain_fc_head():
    head = SELSABoxHead(ShapeSpec(channels=4, height=3, width=3), fc_dims=[8], num_heads=None)
    assert not head.aggregates
    assert head(torch.randn(2, 4, 3, 3)).shape == (2, 8)
    assert not [name for name, _ in head.named_parameters() if "selsa" in name]
