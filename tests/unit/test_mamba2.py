"""The Mamba-2 layer against the blocks of transformers (Mamba-2, Falcon-H1) with the same random weights."""

from typing import Any

import blocks
import pytest
import torch
from transformers import FalconH1Config, Mamba2Config
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1Mixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from stretto.core.errors import UserError
from stretto.mixers.mamba2 import CARD, Mamba2

SIZES: dict[str, Any] = {"d_model": 16, "num_heads": 4, "head_dim": 8, "d_state": 6, "eps": 1e-3}


def check(ours: Mamba2, theirs: torch.nn.Module) -> None:
    names = {"conv1d.weight": "conv_weight", "conv1d.bias": "conv_bias", "norm.weight": "norm_weight"}
    blocks.check(ours, theirs, SIZES["d_model"], names)


@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.5, 1.0)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_equals_mamba2(num_groups: int, limit: tuple[float, float], bias: bool) -> None:
    config = Mamba2Config(
        hidden_size=16, num_heads=4, head_dim=8, expand=2, state_size=6, n_groups=num_groups, conv_kernel=4,
        time_step_limit=limit, num_hidden_layers=1, chunk_size=8, use_bias=bias, layer_norm_epsilon=1e-3,
    )  # fmt: skip
    ours = Mamba2.Config(**SIZES, num_groups=num_groups, time_step_limit=limit, bias=bias).build()
    check(ours, Mamba2Mixer(config, layer_idx=0))


@pytest.mark.parametrize(("norm", "norm_before_gate"), [(False, False), (True, True), (True, False)])
def test_equals_falcon_h1(norm: bool, norm_before_gate: bool) -> None:
    config = FalconH1Config(
        hidden_size=16, mamba_n_heads=4, mamba_d_head=8, mamba_d_ssm=32, mamba_d_state=6, mamba_n_groups=2,
        mamba_chunk_size=8, mamba_rms_norm=norm, mamba_norm_before_gate=norm_before_gate, rms_norm_eps=1e-3,
        num_hidden_layers=1,
    )  # fmt: skip
    theirs = FalconH1Mixer(config, layer_idx=0).eval()
    theirs.mup_vector = torch.ones(1)
    check(Mamba2.Config(**SIZES, num_groups=2, norm=norm, norm_before_gate=norm_before_gate).build(), theirs)


def test_unequal_groups_are_refused() -> None:
    with pytest.raises(UserError, match="num_heads 4 is no multiple of num_groups 3"):
        CARD.make(d_model=16, num_heads=4, num_groups=3)
