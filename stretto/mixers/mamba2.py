"""Mamba-2: a linear recurrence with one input-dependent decay per head (state-space duality).

    z, xBC, dt = x W_in                          xBC <- silu(short_conv(xBC))            xBC = [x, B, C]
    D_t = clamp(softplus(dt + dt_bias), limit)   g_t = -D_t exp(A_log)
    S_t = e^{g_t} S_{t-1} + B_t (D_t x_t)^T      S: (S, V) per head, kept in fp32 or wider
    y_t = S_t^T C_t + D x_t                      out = norm(y * silu(z)) W_out           norm per group of heads

So q = C, k = B, v = D_t x in the words of `glr`; heads of a group share B and C. Paper: arXiv 2405.21060. The norm is
taken per d_inner / num_groups channels (the layout of published checkpoints), and can be absent (Falcon-H1) or come
before the gate.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stretto.core.card import Card
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache
from stretto.kernels.gates import log_decay, scale_heads, time_step
from stretto.kernels.glr import glr
from stretto.kernels.linear import Linear
from stretto.mixers import _shared as parts


class Mamba2(parts.Recurrent):
    wide_params = ("A_log", "D", "dt_bias")

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        d_model: int
        num_heads: int
        head_dim: int = 64
        num_groups: int = 1
        d_state: int = 128
        conv_width: int = 4
        conv_bias: bool = True
        bias: bool = False  # of the two projections
        norm: bool = True
        norm_before_gate: bool = False
        eps: float = 1e-5
        time_step_limit: tuple[float, float] = (0.0, math.inf)

        def __post_init__(self) -> None:
            parts.check_groups("mamba2", num_heads=self.num_heads, num_groups=self.num_groups)

        @property
        def d_inner(self) -> int:
            return self.num_heads * self.head_dim

        @property
        def d_conv(self) -> int:
            """Channels that pass the convolution: x, B, C."""
            return self.d_inner + 2 * self.num_groups * self.d_state

        def build(self) -> "Mamba2":
            return Mamba2(self)

    def __init__(self, config: Config) -> None:
        c = config
        super().__init__(
            c.d_model,
            c.d_inner,
            memory=(c.num_heads, c.d_state, c.head_dim),
            conv=(c.d_conv, c.conv_width),
            conv_bias=c.conv_bias,
            norm=c.d_inner if c.norm else None,
            out_bias=c.bias,
        )
        self.config = c
        self.in_proj = Linear(c.d_model, {"z": c.d_inner, "xBC": c.d_conv, "dt": c.num_heads}, bias=c.bias)
        self.A_log = nn.Parameter(torch.empty(c.num_heads).uniform_(1.0, 16.0).log())
        self.D = nn.Parameter(torch.ones(c.num_heads))
        self.dt_bias = parts.time_step_bias(c.num_heads)

    def forward(self, x_TD: Tensor, seqs: Seqs, cache: LayerCache | None = None) -> Tensor:
        c = self.config
        z_TF, xBC, dt = self.in_proj.split(self.in_proj(x_TD, seqs))
        xBC = self.conv_silu(xBC, seqs, cache)
        x, B, C = xBC.split_with_sizes([c.d_inner, c.num_groups * c.d_state, c.num_groups * c.d_state], -1)
        x_THV = parts.widen(x.view(-1, c.num_heads, c.head_dim))
        B_TGS, C_TGS = (part.view(-1, c.num_groups, c.d_state) for part in (B, C))
        dt_TH = time_step(parts.widen(dt), self.dt_bias, limit=c.time_step_limit)
        v_THV, g_TH = scale_heads(x_THV, dt_TH), log_decay(dt_TH, self.A_log)
        y_THV = glr(C_TGS, B_TGS, v_THV, g=g_TH, seqs=seqs, state=self.memory(cache))
        y_TF = scale_heads(x_THV, self.D, add=y_THV).flatten(1)
        return self.gated_output(y_TF, z_TF, seqs, eps=c.eps, groups=c.num_groups, norm_before_gate=c.norm_before_gate)


CARD = Card(
    name="mamba2",
    make=Mamba2.Config,
    idea="state-space layer whose every head decays its matrix state by an input-dependent scalar",
    paper="2405.21060",
    can=Mamba2.can,
    tiny={"d_model": 16, "num_heads": 4, "head_dim": 4, "num_groups": 2, "d_state": 6},
    state="H*S*V fp32 + (conv_width-1)*(H*V + 2*groups*S)",
    cost="O(T H S V)",
)
