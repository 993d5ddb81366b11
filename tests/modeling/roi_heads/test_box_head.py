from __future__ import annotations

import numpy as np
import pytest
import torch
from aggregation_states import block_state
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNConvFCHead

from clab_d2.errors import ConfigError
from clab_d2.modeling.aggregation.selsa import SELSA
from clab_d2.modeling.roi_heads.box_head import TemporalBoxHead

SHAPE = ShapeSpec(channels=4, height=3, width=3)


def test_equals_the_release(golden):
    arrays = np.load(golden("selsa_box_head.npz"))
    heads = int(arrays["num_attention_blocks"])
    head = TemporalBoxHead(
        ShapeSpec(channels=32, height=7, width=7),
        fc_dims=[64] * 3,
        aggregations=[SELSA(64, num_heads=heads) for _ in range(3)],
    )
    state = {}
    for index in range(3):
        for kind in ("weight", "bias"):
            state[f"fc{index + 1}.{kind}"] = torch.from_numpy(
                arrays[f"w/shared_fcs.{index}.{kind}"]
            )
        block = block_state(arrays, f"w/aggregator.{index}.")
        state.update({f"aggregations.{index}.{name}": value for name, value in block.items()})
    head.load_state_dict(state)
    features = head(
        torch.from_numpy(arrays["x"]), head.encode_references(torch.from_numpy(arrays["ref_x"]))
    )
    for name, key in (("fc_cls", "cls_score"), ("fc_reg", "bbox_pred")):
        weight, bias = (torch.from_numpy(arrays[f"w/{name}.{kind}"]) for kind in ("weight", "bias"))
        out = torch.nn.functional.linear(features, weight, bias)
        np.testing.assert_allclose(out.detach().numpy(), arrays[key], atol=1e-4)


@pytest.mark.parametrize("options", [{"fc_dims": [8, 8]}, {"fc_dims": [8], "conv_dims": [6]}])
def test_without_aggregation_it_is_detectron2s_head(options):
    torch.manual_seed(0)
    ours = TemporalBoxHead(SHAPE, **options)
    theirs = FastRCNNConvFCHead(SHAPE, conv_dims=options.pop("conv_dims", []), **options)
    assert not ours.needs_references
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(ours(x), theirs(x))


def test_layer_norm_follows_each_fc():
    torch.manual_seed(0)
    head = TemporalBoxHead(SHAPE, fc_dims=[64], norm="LN")
    out = head(100 * torch.randn(5, 4, 3, 3))
    assert out.square().mean().item() == pytest.approx(0.5, abs=0.1)


def test_impossible_heads_are_refused():
    with pytest.raises(ConfigError, match="NUM_FC"):
        TemporalBoxHead(SHAPE, fc_dims=[])
    with pytest.raises(ValueError, match="1 aggregations for 2 FC layers"):
        TemporalBoxHead(SHAPE, fc_dims=[8, 8], aggregations=[SELSA(8, num_heads=2)])
    head = TemporalBoxHead(SHAPE, fc_dims=[8], aggregations=[SELSA(8, num_heads=2)])
    with pytest.raises(ValueError, match="needs reference RoIs"):
        head(torch.zeros(1, 4, 3, 3))
