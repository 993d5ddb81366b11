from __future__ import annotations

import numpy as np
import pytest
import torch
from aggregation_states import block_state

from clab_d2.errors import ConfigError
from clab_d2.modeling.aggregation.selsa import SELSA


def test_equals_the_release(golden):
    arrays = np.load(golden("selsa_aggregator.npz"))
    block = SELSA(64, num_heads=int(arrays["num_attention_blocks"]))
    block.load_state_dict(block_state(arrays, "w/"))
    x = torch.from_numpy(arrays["x"])
    out = block(x, block.encode_references(torch.from_numpy(arrays["ref_x"])))
    np.testing.assert_allclose((out - x).detach().numpy(), arrays["out"], atol=1e-5)


def test_heads_that_do_not_divide_the_channels_are_named():
    with pytest.raises(ConfigError, match=r"MODEL\.SELSA\.NUM_HEADS 3 .* 32 channels"):
        SELSA(32, num_heads=3)
