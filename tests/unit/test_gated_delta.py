"""The Gated DeltaNet layer against the block of Qwen3-Next in transformers with the same random weights."""

import pytest
import torch
from blocks import agree
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from stretto.core.errors import UserError
from stretto.core.seqs import Seqs
from stretto.mixers.gated_delta import CARD, GatedDelta

D, K, V = 16, 6, 5


def pair(num_k_heads: int, num_v_heads: int) -> tuple[GatedDelta, Qwen3NextGatedDeltaNet]:
    """Our layer and theirs, holding the same random weights; theirs stores its projections key head by key head."""
    theirs = Qwen3NextGatedDeltaNet(
        Qwen3NextConfig(
            hidden_size=D, linear_num_value_heads=num_v_heads, linear_num_key_heads=num_k_heads, linear_key_head_dim=K,
            linear_value_head_dim=V, linear_conv_kernel_dim=4, num_hidden_layers=4, rms_norm_eps=1e-3,
        ),
        layer_idx=0,
    )  # fmt: skip
    ours = GatedDelta.Config(
        d_model=D, num_k_heads=num_k_heads, num_v_heads=num_v_heads, head_k_dim=K, head_v_dim=V, eps=1e-3
    ).build()
    per_key = num_v_heads // num_k_heads
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        qkvz = theirs.in_proj_qkvz.weight.view(num_k_heads, -1, D).split([K, K, per_key * V, per_key * V], 1)
        ba = theirs.in_proj_ba.weight.view(num_k_heads, -1, D).split([per_key, per_key], 1)
        ours.in_proj.weight.copy_(torch.cat([part.reshape(-1, D) for part in (*qkvz, *ba)]))
        ours.conv_weight.copy_(theirs.conv1d.weight[:, 0])
        ours.norm_weight.copy_(theirs.norm.weight)
        ours.out_proj.weight.copy_(theirs.out_proj.weight)
        ours.A_log.copy_(theirs.A_log)
        ours.dt_bias.copy_(theirs.dt_bias)
    return ours, theirs


@pytest.mark.parametrize(("num_k_heads", "num_v_heads"), [(2, 2), (2, 4), (1, 3)])
def test_equals_transformers(num_k_heads: int, num_v_heads: int) -> None:
    ours, theirs = pair(num_k_heads, num_v_heads)
    with torch.no_grad():
        agree(ours, theirs, D)


@pytest.mark.parametrize(("num_k_heads", "num_v_heads"), [(2, 2), (2, 6), (1, 3)])
def test_tiled_heads_are_the_same_function_of_other_rows(num_k_heads: int, num_v_heads: int) -> None:
    """Grouped value head g * r + j is tiled head j * G + g, in every parameter that has value heads."""
    sizes = {"d_model": D, "num_k_heads": num_k_heads, "num_v_heads": num_v_heads, "head_k_dim": K, "head_v_dim": V}
    grouped, tiled = (GatedDelta.Config(**sizes, tiled=tiled).build().double() for tiled in (False, True))

    def moved(x: torch.Tensor, width: int, axis: int = 0) -> torch.Tensor:
        heads = x.unflatten(axis, (num_k_heads, num_v_heads // num_k_heads, width))
        return heads.transpose(axis, axis + 1).flatten(axis, axis + 2)

    keys, values = 2 * num_k_heads * K, num_v_heads * V
    with torch.no_grad():
        qk, v, z, b, a = grouped.in_proj.weight.split([keys, values, values, num_v_heads, num_v_heads])
        rows = [qk, moved(v, V), moved(z, V), moved(b, 1), moved(a, 1)]
        tiled.in_proj.weight.copy_(torch.cat(rows))
        conv_qk, conv_v = grouped.conv_weight.split([keys, values])
        tiled.conv_weight.copy_(torch.cat([conv_qk, moved(conv_v, V)]))
        tiled.A_log.copy_(moved(grouped.A_log, 1))
        tiled.dt_bias.copy_(moved(grouped.dt_bias, 1))
        tiled.norm_weight.copy_(grouped.norm_weight)
        tiled.out_proj.weight.copy_(moved(grouped.out_proj.weight, V, axis=1))
        x, seqs = torch.randn(30, D, dtype=torch.float64), Seqs.of([21, 9])
        torch.testing.assert_close(tiled(x, seqs), grouped(x, seqs), rtol=0, atol=1e-12)


def test_negative_eigenvalues_flip_a_stored_value() -> None:
    """With beta = 2, no decay and one repeated key, writing v = 0 turns the memory's sign: the parity of the writes."""
    config = GatedDelta.Config(
        d_model=2, num_k_heads=1, num_v_heads=1, head_k_dim=2, head_v_dim=2, conv_width=1, allow_neg_eigval=True
    )
    layer = config.build().double()
    with torch.no_grad():
        layer.in_proj.weight.zero_()
        layer.in_proj.weight[0, 0] = layer.in_proj.weight[2, 0] = 200.0  # q and k point along the first key axis
        layer.in_proj.weight[4, 1] = 50.0  # v is written only when the second input is set
        layer.in_proj.weight[6:8, 0] = 1.0  # an open output gate
        layer.in_proj.weight[8, 0] = 60.0  # sigmoid(b) = 1
        layer.conv_weight.fill_(1.0)
        layer.A_log.fill_(-60.0)  # no decay
        layer.out_proj.weight.copy_(torch.eye(2))
        x = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        y = layer(x, Seqs.of([4]))[:, 0]
    assert (y.sign() == torch.tensor([1.0, -1.0, 1.0, -1.0])).all()
    torch.testing.assert_close(y.abs(), y.abs()[:1].expand(4), rtol=1e-6, atol=0)


def test_uneven_heads_are_refused() -> None:
    with pytest.raises(UserError, match="num_v_heads 4 is no multiple of num_k_heads 3"):
        CARD.make(d_model=16, num_k_heads=3, num_v_heads=4)
