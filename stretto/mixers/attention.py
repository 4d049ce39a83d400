"""Softmax attention with multi-head, grouped or multi-query keys, by config.

    q = rope(norm(x W_q^T))    k = rope(norm(x W_k^T))    v = x W_v^T
    o_i = sum_{j <= i} softmax_j(scale * q_i . k_j) v_j    y = o W_o^T

H query heads share G key heads: G = H is multi-head (arXiv 1706.03762), G = 1 multi-query (1911.02150), anything
between grouped-query attention (2305.13245). norm is RMSNorm over a head (Qwen3) or over all heads (OLMo 2), rope the
rotary embedding; both are optional. window = w: a token sees the last w tokens only, and no others are kept (Mistral).
softcap: scores become softcap * tanh(score / softcap) (Gemma 2). sinks: every query head learns the logit of a key that
it always sees and that has no value (gpt-oss). q, k and v are segments of one matrix.
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


class Attention(Mixer):
    """See the module docstring."""

    can = Can.CAUSAL | Can.PACKED | Can.SNAPSHOT | Can.CHAIN | Can.TREE | Can.BITWISE_CAUSAL

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """scale: default head_dim ** -0.5. qk_norm: epsilon, None = no norm; norm_of_all: over all heads at once."""

        d_model: int
        num_heads: int
        num_kv_heads: int
        head_dim: int
        rope: Rope | None = None
        scale: float | None = None
        window: int | None = None
        softcap: float | None = None
        sinks: bool = False
        qk_norm: float | None = None
        norm_of_all: bool = False
        qkv_bias: bool = False
        out_bias: bool = False

        def build(self) -> "Attention":
            return Attention(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        assert c.num_heads % c.num_kv_heads == 0, "every key head serves the same number of query heads"
        self.d_model = c.d_model
        kv = c.num_kv_heads * c.head_dim
        self.qkv = Linear(c.d_model, {"q": c.num_heads * c.head_dim, "k": kv, "v": kv}, c.qkv_bias)
        self.out = Linear(c.num_heads * c.head_dim, {"o": c.d_model}, c.out_bias)
        if c.qk_norm is not None:
            self.q_norm = nn.Parameter(torch.ones(c.head_dim * (c.num_heads if c.norm_of_all else 1)))
            self.k_norm = nn.Parameter(torch.ones(c.head_dim * (c.num_kv_heads if c.norm_of_all else 1)))
        if c.sinks:
            self.sinks = nn.Parameter(torch.zeros(c.num_heads))

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        c = self.config
        group = "all" if c.window is None else f"window:{c.window}"
        return tuple(
            StateSpec(name=name, shape=(c.num_kv_heads, c.head_dim), kind="paged", lanes=name == "k", group=group)
            for name in ("k", "v")
        )

    @property
    def pair_flops(self) -> int:
        return 4 * self.config.num_heads * self.config.head_dim  # a product with a key, and one with its value

    def forward(self, x_TD: Tensor, seqs: Seqs, cache: LayerCache | None = None) -> Tensor:
        """[T, D] -> [T, D]."""
        c = self.config
        heads_TNK = self.qkv(x_TD, seqs).unflatten(1, (c.num_heads + 2 * c.num_kv_heads, c.head_dim))  # N = H + G + G
        q_THK, k_TGK, v_TGK = heads_TNK.split_with_sizes([c.num_heads, c.num_kv_heads, c.num_kv_heads], 1)
        if c.qk_norm is not None:
            q_THK, k_TGK = self._normed(q_THK, self.q_norm), self._normed(k_TGK, self.k_norm)
        if c.rope is not None:
            q_THK, k_TGK = apply_rope(q_THK, c.rope, seqs), apply_rope(k_TGK, c.rope, seqs)
        kv = (paged(cache, "k"), paged(cache, "v")) if cache is not None else None
        o_THK, _ = attention(
            q_THK,
            k_TGK,
            v_TGK,
            seqs=seqs,
            kv=kv,
            scale=c.scale,
            window=c.window,
            softcap=c.softcap,
            sinks=self.sinks if c.sinks else None,
        )
        return self.out(o_THK.flatten(1), seqs)  # type: ignore[no-any-return]

    def _normed(self, x_THK: Tensor, weight: Tensor) -> Tensor:
        c = self.config
        assert c.qk_norm is not None
        if c.norm_of_all:
            return rms_norm(x_THK.flatten(1), weight, eps=c.qk_norm).view(x_THK.shape)
        return rms_norm(x_THK, weight, eps=c.qk_norm)


_TINY = {"d_model": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "rope": Rope(dim=8), "qk_norm": 1e-6}

CARD = Card(
    name="attention",
    make=Attention.Config,
    tiny=_TINY,
    variants={
        "with a window and sinks": {"window": 5, "sinks": True},
        "with soft-capping": {"softcap": 1.5, "qk_norm": None},
        "with norms of all heads": {"norm_of_all": True},
    },
    idea="softmax attention, grouped by config",
    paper="2305.13245",
    state="2 G K per token (KV dtype)",
    cost="O(T L H K)",
    can=Attention.can,
)
