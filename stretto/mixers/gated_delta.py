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

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stretto.core.card import Can, Card
from stretto.core.errors import UserError
from stretto.core.mixer import Mixer
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache, StateSpec, slot
from stretto.kernels.gates import log_decay, sigmoid_gate, time_step
from stretto.kernels.glr import glr
from stretto.kernels.linear import Linear
from stretto.kernels.rmsnorm import rms_norm, unit_length
from stretto.kernels.short_conv import short_conv

_UNIT_EPS = 1e-6  # under the root: without it beta |k|^2 can pass 2 and the state explodes


class GatedDelta(Mixer):
    can = Can.CAUSAL | Can.PACKED | Can.SNAPSHOT | Can.CHAIN | Can.TREE | Can.BITWISE_CAUSAL
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
            if self.num_v_heads % self.num_k_heads:
                raise UserError(
                    f"gated_delta: {self.num_v_heads} value heads for {self.num_k_heads} key heads",
                    why="every key head serves the same number of value heads",
                    try_="num_v_heads that is a multiple of num_k_heads",
                )

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
        super().__init__()
        c = self.config = config
        self.d_model = c.d_model
        segments = {"q": c.d_key, "k": c.d_key, "v": c.d_value, "z": c.d_value, "b": c.num_v_heads, "a": c.num_v_heads}
        self.in_proj = Linear(c.d_model, segments)
        bound = c.conv_width**-0.5
        self.conv_weight = nn.Parameter(torch.empty(c.d_conv, c.conv_width).uniform_(-bound, bound))
        self.A_log = nn.Parameter(torch.empty(c.num_v_heads).uniform_(1e-4, 16.0).log())
        dt = torch.empty(c.num_v_heads).uniform_(math.log(1e-3), math.log(1e-1)).exp().clamp(min=1e-4)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.norm_weight = nn.Parameter(torch.ones(c.head_v_dim))
        self.out_proj = Linear(c.d_value, {"out": c.d_model})

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        c = self.config
        return (
            StateSpec(name="conv", shape=(c.conv_width - 1, c.d_conv), kind="slot"),
            StateSpec(
                name="memory",
                shape=(c.num_v_heads, c.head_k_dim, c.head_v_dim),
                dtype=torch.float32,
                kind="slot",
            ),
        )

    def _shared_out(self, x_TGK: Tensor) -> Tensor:
        """Queries or keys [T, G, K] as the recurrence takes them: tiled heads have no groups of neighbours, so that
        every value head gets its own, [T, H, K]."""
        num_tiles = self.config.num_v_heads // self.config.num_k_heads
        if not self.config.tiled or num_tiles == 1:
            return x_TGK
        rows = x_TGK.flatten(1)
        return torch.cat([rows] * num_tiles, -1).view(len(rows), -1, self.config.head_k_dim)

    def forward(self, x_TD: Tensor, seqs: Seqs, cache: LayerCache | None = None) -> Tensor:
        c = self.config
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        projected: Tensor = self.in_proj(x_TD, seqs)
        qkv, z, b, a = projected.split_with_sizes([c.d_conv, c.d_value, c.num_v_heads, c.num_v_heads], -1)
        conv_state = None if cache is None else slot(cache, "conv")
        qkv = short_conv(qkv, self.conv_weight, seqs=seqs, state=conv_state, activation="silu")
        q, k, v = qkv.split_with_sizes([c.d_key, c.d_key, c.d_value], -1)
        q_TGK, k_TGK = (part.view(len(x_TD), c.num_k_heads, c.head_k_dim).to(wide) for part in (q, k))
        beta_TH = sigmoid_gate(b.to(wide), scale=2.0 if c.allow_neg_eigval else 1.0)
        g_TH = log_decay(time_step(a.to(wide), self.dt_bias), self.A_log)
        y_THV = glr(
            self._shared_out(unit_length(q_TGK, eps=_UNIT_EPS)),
            self._shared_out(unit_length(k_TGK, eps=_UNIT_EPS)),
            v.view(len(x_TD), c.num_v_heads, c.head_v_dim).to(wide),
            g=g_TH,
            beta=beta_TH,
            seqs=seqs,
            state=None if cache is None else slot(cache, "memory"),
            scale=c.head_k_dim**-0.5,
        )
        gate_THV = z.view(len(x_TD), c.num_v_heads, c.head_v_dim).to(wide)
        y_THV = rms_norm(y_THV, self.norm_weight, eps=c.eps, gate=gate_THV, norm_before_gate=True)
        out: Tensor = self.out_proj(y_THV.flatten(1).to(x_TD.dtype), seqs)
        return out


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
