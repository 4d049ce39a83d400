"""The Mamba layer against the block of transformers with the same random weights."""

from typing import Any

import pytest
import torch
from blocks import check
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from stretto.mixers.mamba import CARD


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("conv_bias", [False, True])
@pytest.mark.parametrize("dt_rank", [None, 5])
def test_equals_transformers(bias: bool, conv_bias: bool, dt_rank: int | None) -> None:
    config = MambaConfig(
        hidden_size=24, state_size=6, expand=2, conv_kernel=4, use_bias=bias, use_conv_bias=conv_bias,
        time_step_rank="auto" if dt_rank is None else dt_rank, num_hidden_layers=1,
    )  # fmt: skip
    theirs: Any = MambaMixer(config, layer_idx=0)
    ours = CARD.make(d_model=24, d_state=6, dt_rank=dt_rank, bias=bias, conv_bias=conv_bias).build()
    check(ours, theirs, 24, {"conv1d.weight": "conv_weight", "conv1d.bias": "conv_bias", "dt_proj.bias": "dt_bias"})


def test_starts_as_the_paper_says() -> None:
    layer = CARD.make(d_model=256).build()
    assert layer.dt_proj.weight.shape == (512, 16) and layer.dt_proj.weight.abs().max() <= 0.25
    dt = torch.nn.functional.softplus(layer.dt_bias)
    assert dt.min() >= 0.9e-4 and dt.max() <= 0.101 and dt.log().std() > 1
    torch.testing.assert_close(layer.A_log.exp(), torch.arange(1.0, 17).expand(512, 16))
