"""Gated DeltaNet: a decaying associative memory that replaces the value stored under a key.

    q, k, v, z, b, a = x W_in                     q, k, v <- silu(short_conv(q, k, v))
    q, k <- q / |q|, k / |k|                      |x| = sqrt(sum x^2 + 1e-6), and q / sqrt(K)
    beta_t = sigmoid(b)                           g_t = -exp(A_log) softplus(a + dt_bias)
    S_t = e^{g_t} (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T      S: (K, V) per value head, fp32 or wider
    y_t = S_t^T q_t                               out = (norm(y) * silu(z)) W_out        norm per head

Value heads share the keys of their group (grouped values, as in Qwen3-Next), or, `tiled`, those of every num_k_heads-th
head: the same function of other rows, and the order of ggml's files. `allow_neg_eigval` doubles beta, so that
I - beta k k^T can flip a direction (parity needs it). Paper: arXiv 2412.06464. Differs from it: the three convolutions
are one over the concatenation of q, k and v, which is the same function.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stretto.core.card import Card
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache
from stretto.kernels.gates import log_decay, sigmoid_gate, time_step
from stretto.kernels.glr import glr
from stretto.kernels.linear import Linear
from stretto.kernels.rmsnorm import unit_length
from stretto.mixers import _shared as parts

_UNIT_EPS = 1e-6  # under the root: without it beta |k|^2 can pass 2 and the state explodes


class GatedDelta(parts.Recurrent):
    wide_params = ("A_log", "dt_bias")

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        d_model: int
        num_k_heads: int
        num_v_heads: int
        head_k_dim: int = 128
        head_v_dim: int = 128
        conv_width: int = 4
        allow_neg_eigval: bool = False
        eps: float = 1e-6  # of the output norm
        tiled: bool = False  # value head j has key head j mod num_k_heads

        def __post_init__(self) -> None:
            parts.check_groups("gated_delta", num_v_heads=self.num_v_heads, num_k_heads=self.num_k_heads)

        @property
        def d_key(self) -> int:
            return self.num_k_heads * self.head_k_dim

        @property
        def d_value(self) -> int:
            return self.num_v_heads * self.head_v_dim

        @property
        def d_conv(self) -> int:
            """Channels that pass the convolution: q, k, v."""
            return 2 * self.d_key + self.d_value

        def build(self) -> "GatedDelta":
            return GatedDelta(self)

    def __init__(self, config: Config) -> None:
        c = config
        memory, conv = (c.num_v_heads, c.head_k_dim, c.head_v_dim), (c.d_conv, c.conv_width)
        super().__init__(c.d_model, c.d_value, memory=memory, conv=conv, norm=c.head_v_dim)
        self.config = c
        segments = {"q": c.d_key, "k": c.d_key, "v": c.d_value, "z": c.d_value, "b": c.num_v_heads, "a": c.num_v_heads}
        self.in_proj = Linear(c.d_model, segments)
        self.A_log = nn.Parameter(torch.empty(c.num_v_heads).uniform_(1e-4, 16.0).log())
        self.dt_bias = parts.time_step_bias(c.num_v_heads)

    def forward(self, x_TD: Tensor, seqs: Seqs, cache: LayerCache | None = None) -> Tensor:
        c = self.config
        projected: Tensor = self.in_proj(x_TD, seqs)
        qkv, z_TF, b, a = projected.split_with_sizes([c.d_conv, c.d_value, c.num_v_heads, c.num_v_heads], -1)
        qkv = self.conv_silu(qkv, seqs, cache)
        q, k, v = qkv.split_with_sizes([c.d_key, c.d_key, c.d_value], -1)
        tiles = c.num_v_heads // c.num_k_heads if c.tiled else 1
        q_TGK, k_TGK = (parts.widen(part.view(-1, c.num_k_heads, c.head_k_dim)) for part in (q, k))
        beta_TH = sigmoid_gate(parts.widen(b), scale=2.0 if c.allow_neg_eigval else 1.0)
        g_TH = log_decay(time_step(parts.widen(a), self.dt_bias), self.A_log)
        y_THV = glr(
            parts.tile_heads(unit_length(q_TGK, eps=_UNIT_EPS), tiles),
            parts.tile_heads(unit_length(k_TGK, eps=_UNIT_EPS), tiles),
            parts.widen(v.view(-1, c.num_v_heads, c.head_v_dim)),
            g=g_TH,
            beta=beta_TH,
            seqs=seqs,
            state=self.memory(cache),
            scale=c.head_k_dim**-0.5,
        )
        return self.gated_output(y_THV, z_TF, seqs, eps=c.eps)


CARD = Card(
    name="gated_delta",
    make=GatedDelta.Config,
    idea="matrix memory with decay whose writes replace what a key held (gated delta rule)",
    paper="2412.06464",
    can=GatedDelta.can,
    tiny={"d_model": 16, "num_k_heads": 2, "num_v_heads": 4, "head_k_dim": 6, "head_v_dim": 4},
    state="H*K*V fp32 + (conv_width-1)*(2*G*K + H*V)",
    cost="O(T H K V)",
)
