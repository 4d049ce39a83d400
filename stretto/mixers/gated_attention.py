"""Softmax attention whose output passes a gate of its own (Qwen3-Next, Qwen3.5).

    q = rope(norm(x W_q^T))    k = rope(norm(x W_k^T))    v = x W_v^T    z = x W_z^T
    o_i = sum_{j <= i} softmax_j(q_i . k_j / sqrt(K)) v_j
    y = (o * sigmoid(z)) W_o^T                            z: one number per entry of o

norm is RMSNorm over a head with the weight 1 + w; w is what is stored and learned, from zero. rope may turn the first
entries of a head only. H query heads share G key heads. The gate lets a head say nothing, which softmax cannot
(attention sinks). q, z, k and v are segments of one matrix; q and z are one of them, as checkpoints store them, all
queries first. Paper: arXiv 2505.06708.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stretto.core.card import Can, Card
from stretto.core.mixer import Mixer
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache, StateSpec, paged
from stretto.kernels.attention import attention
from stretto.kernels.linear import Linear
from stretto.kernels.rmsnorm import rms_norm
from stretto.kernels.rope import Rope, apply_rope


class GatedAttention(Mixer):
    """See the module docstring."""

    can = Can.CAUSAL | Can.PACKED | Can.SNAPSHOT | Can.CHAIN | Can.TREE | Can.BITWISE_CAUSAL

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """rope: its dim is the rotated part of a head. eps: of the norms of q and k."""

        d_model: int
        num_heads: int
        num_kv_heads: int
        head_dim: int
        rope: Rope | None = None
        eps: float = 1e-6
        qkv_bias: bool = False
        out_bias: bool = False

        def build(self) -> "GatedAttention":
            return GatedAttention(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        assert c.num_heads % c.num_kv_heads == 0, "every key head serves the same number of query heads"
        self.d_model = c.d_model
        d_query, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.qkv = Linear(c.d_model, {"qz": 2 * d_query, "k": kv, "v": kv}, c.qkv_bias)
        self.out = Linear(d_query, {"o": c.d_model}, c.out_bias)
        self.q_norm, self.k_norm = (nn.Parameter(torch.zeros(c.head_dim)) for _ in "qk")

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        shape = (self.config.num_kv_heads, self.config.head_dim)
        return tuple(StateSpec(name=name, shape=shape, kind="paged", lanes=name == "k") for name in ("k", "v"))

    @property
    def pair_flops(self) -> int:
        return 4 * self.config.num_heads * self.config.head_dim  # a product with a key, and one with its value

    def forward(self, x_TD: Tensor, seqs: Seqs, cache: LayerCache | None = None) -> Tensor:
        """[T, D] -> [T, D]."""
        c, wide = self.config, torch.promote_types(x_TD.dtype, torch.float32)
        heads_TNK = self.qkv(x_TD, seqs).unflatten(1, (2 * c.num_heads + 2 * c.num_kv_heads, c.head_dim))
        sizes = [c.num_heads, c.num_heads, c.num_kv_heads, c.num_kv_heads]
        q_THK, z_THK, k_TGK, v_TGK = heads_TNK.split_with_sizes(sizes, 1)
        q_THK = rms_norm(q_THK, 1 + self.q_norm.to(wide), eps=c.eps)
        k_TGK = rms_norm(k_TGK, 1 + self.k_norm.to(wide), eps=c.eps)
        if c.rope is not None:
            q_THK, k_TGK = apply_rope(q_THK, c.rope, seqs), apply_rope(k_TGK, c.rope, seqs)
        kv = (paged(cache, "k"), paged(cache, "v")) if cache is not None else None
        o_THK, _ = attention(q_THK, k_TGK, v_TGK, seqs=seqs, kv=kv)
        return self.out((o_THK * z_THK.sigmoid()).flatten(1), seqs)  # type: ignore[no-any-return]


_TINY = {"d_model": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "rope": Rope(dim=4)}

CARD = Card(
    name="gated_attention",
    make=GatedAttention.Config,
    tiny=_TINY,
    idea="softmax attention with a sigmoid gate on its output and a rotated part of every head",
    paper="2505.06708",
    state="2 G K per token (KV dtype)",
    cost="O(T L H K)",
    can=GatedAttention.can,
)
