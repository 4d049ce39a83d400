"""Mamba: a state-space layer whose every channel decays S numbers by an input-dependent step (S6).

    x, z = u W_in                                  x <- silu(short_conv(x))
    delta, B, C = x W_x                            dt_t = softplus(delta W_dt + dt_bias)
    h_t = e^{dt_t A} h_{t-1} + dt_t x_t B_t^T      h: (S, d_inner), kept in fp32 or wider; A = -exp(A_log) < 0
    y_t = h_t C_t + D x_t                          out = (y * silu(z)) W_out

delta has dt_rank numbers, B and C have S, shared by all channels; each of the three may be normalised (inner_norm). The
bias of the time steps is a parameter of its own, so that no rule about biases resets it, and stays in fp32. Paper:
arXiv 2312.00752.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stretto.core.card import Card
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache
from stretto.kernels.dscan import dscan
from stretto.kernels.gates import time_step
from stretto.kernels.linear import Linear
from stretto.kernels.rmsnorm import rms_norm
from stretto.mixers import _shared as parts


class Mamba(parts.Recurrent):
    wide_params = ("A_log", "D", "dt_bias")

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """dt_rank: default d_model / 16, rounded up. bias: of the projections in and out. inner_norm: epsilon of
        RMSNorms without weights over delta, B and C (Falcon Mamba), None = there are none."""

        d_model: int
        expand: int = 2
        d_state: int = 16
        dt_rank: int | None = None
        conv_width: int = 4
        conv_bias: bool = True
        bias: bool = False
        inner_norm: float | None = None

        @property
        def d_inner(self) -> int:
            return self.expand * self.d_model

        @property
        def d_step(self) -> int:
            """Numbers from which a token's time steps are made."""
            return -(-self.d_model // 16) if self.dt_rank is None else self.dt_rank

        def build(self) -> "Mamba":
            return Mamba(self)

    def __init__(self, config: Config) -> None:
        c = self.config = config
        conv, memory = (c.d_inner, c.conv_width), (c.d_state, c.d_inner)
        super().__init__(c.d_model, c.d_inner, memory=memory, conv=conv, conv_bias=c.conv_bias, out_bias=c.bias)
        self.in_proj = Linear(c.d_model, {"x": c.d_inner, "z": c.d_inner}, bias=c.bias)
        self.x_proj = Linear(c.d_inner, {"delta": c.d_step, "B": c.d_state, "C": c.d_state})
        self.dt_proj = Linear(c.d_step, {"dt": c.d_inner})
        nn.init.uniform_(self.dt_proj.weight, -(c.d_step**-0.5), c.d_step**-0.5)
        self.dt_bias = parts.time_step_bias(c.d_inner)
        self.A_log = nn.Parameter(torch.arange(1.0, c.d_state + 1).log().repeat(c.d_inner, 1))
        self.D = nn.Parameter(torch.ones(c.d_inner))

    def forward(self, x_TD: Tensor, seqs: Seqs, cache: LayerCache | None = None) -> Tensor:
        x_TF, z_TF = self.in_proj.split(self.in_proj(x_TD, seqs))
        x_TF = self.conv_silu(x_TF, seqs, cache)
        delta, B_TS, C_TS = self.x_proj.split(self.x_proj(x_TF, seqs))
        if (eps := self.config.inner_norm) is not None:
            delta, B_TS, C_TS = (rms_norm(part, eps=eps) for part in (delta, B_TS, C_TS))
        dt_TF = time_step(parts.widen(self.dt_proj(delta, seqs)), self.dt_bias)
        memory = self.memory(cache)
        y_TF = dscan(parts.widen(x_TF), dt_TF, B_TS, C_TS, A_log_FS=self.A_log, D_F=self.D, seqs=seqs, state=memory)
        return self.gated_output(y_TF, z_TF, seqs)


CARD = Card(
    name="mamba",
    make=Mamba.Config,
    idea="state-space layer whose every channel decays its own small state by an input-dependent step",
    paper="2312.00752",
    can=Mamba.can,
    tiny={"d_model": 16, "d_state": 5, "dt_rank": 3},
    variants={"with norms inside": {"inner_norm": 1e-6}},
    state="F*S fp32 + (conv_width-1)*F, F = expand*D",
    cost="O(T F S)",
)
