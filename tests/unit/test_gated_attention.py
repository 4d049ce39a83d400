"""Gated attention against the block of Qwen3.5 in transformers with the same random weights."""

import pytest
import torch
from blocks import agree
from torch import Tensor, nn
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5Attention, Qwen3_5TextRotaryEmbedding

from stretto.core.seqs import Seqs
from stretto.kernels.rope import Rope
from stretto.mixers.gated_attention import GatedAttention

D, K = 16, 12


class Theirs(nn.Module):
    """Their block with the positions and the mask that their model gives it."""

    def __init__(self, num_heads: int, num_kv_heads: int, rotated: float, bias: bool) -> None:
        super().__init__()
        config = Qwen3_5TextConfig(
            hidden_size=D, num_attention_heads=num_heads, num_key_value_heads=num_kv_heads, head_dim=K,
            attention_bias=bias, rms_norm_eps=1e-3, num_hidden_layers=1, layer_types=["full_attention"],
            rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": rotated},
        )  # fmt: skip
        config._attn_implementation = "eager"
        self.block, self.rope = Qwen3_5Attention(config, 0), Qwen3_5TextRotaryEmbedding(config)

    def forward(self, x_BTD: Tensor) -> Tensor:
        T = x_BTD.shape[1]
        mask = torch.full((T, T), float("-inf")).triu(1).expand(len(x_BTD), 1, T, T)
        positions = self.rope(x_BTD, torch.arange(T).expand(3, len(x_BTD), T))
        found: Tensor = self.block(x_BTD, positions, mask)[0]
        return found


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("rotated", [1 / 3, 1.0])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_transformers(num_heads: int, num_kv_heads: int, rotated: float, bias: bool) -> None:
    theirs = Theirs(num_heads, num_kv_heads, rotated, bias)
    ours = GatedAttention.Config(
        d_model=D, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=K, eps=1e-3,
        rope=Rope(dim=round(K * rotated), base=100.0), qkv_bias=bias, out_bias=bias,
    ).build()  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        block = theirs.block
        for name in ("weight", "bias") if bias else ("weight",):
            q, k, v = (getattr(getattr(block, f"{s}_proj"), name) for s in "qkv")
            queries, gates = q.unflatten(0, (num_heads, 2, K)).unbind(1)  # head by head: its query, its gate
            getattr(ours.qkv, name).copy_(torch.cat([queries.flatten(0, 1), gates.flatten(0, 1), k, v]))
            getattr(ours.out, name).copy_(getattr(block.o_proj, name))
        ours.q_norm.copy_(block.q_norm.weight)
        ours.k_norm.copy_(block.k_norm.weight)
        agree(ours, theirs, D)


def test_a_closed_gate_gives_nothing() -> None:
    mixer = GatedAttention.Config(d_model=D, num_heads=2, num_kv_heads=1, head_dim=K).build()
    with torch.no_grad():
        mixer.qkv.weight[2 * K : 4 * K] = -1e3
        y = mixer(torch.rand(5, D) + 1, Seqs.of([5]))
    assert float(y.abs().max()) == 0.0
