"""Gated short convolution: a causal depthwise convolution of a few taps between two gates.

    b, c, x = u W_b, u W_c, u W_x        y = (c * conv(b * x)) W_o

Paper: LFM2, arXiv 2511.23404. A sequence carries the last inputs of the convolution and nothing else. b, c and x are
segments of one matrix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stretto.core.card import Can, Card
from stretto.core.mixer import Mixer
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache, StateSpec, slot
from stretto.kernels.linear import Linear
from stretto.kernels.short_conv import short_conv


class GatedConv(Mixer):
    """See the module docstring."""

    can = Can.CAUSAL | Can.PACKED | Can.SNAPSHOT | Can.CHAIN | Can.TREE | Can.BITWISE_CAUSAL

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """width: taps of the convolution; bias: of both matrices and the convolution."""

        d_model: int
        width: int = 3
        bias: bool = False

        def build(self) -> "GatedConv":
            return GatedConv(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        self.d_model = c.d_model
        self.in_proj = Linear(c.d_model, dict.fromkeys("bcx", c.d_model), c.bias)
        bound = c.width**-0.5  # the start of torch's convolutions
        self.conv_weight = nn.Parameter(torch.empty(c.d_model, c.width).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.zeros(c.d_model)) if c.bias else None
        self.out_proj = Linear(c.d_model, {"out": c.d_model}, c.bias)

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        return (StateSpec(name="conv", shape=(self.config.width - 1, self.d_model), kind="slot"),)

    def forward(self, x_TD: Tensor, seqs: Seqs, cache: LayerCache | None = None) -> Tensor:
        """[T, D] -> [T, D]."""
        b_TD, c_TD, u_TD = self.in_proj.split(self.in_proj(x_TD, seqs))
        state = None if cache is None else slot(cache, "conv")
        y_TD = short_conv(b_TD * u_TD, self.conv_weight, self.conv_bias, seqs=seqs, state=state)
        return self.out_proj(c_TD * y_TD, seqs)  # type: ignore[no-any-return]


CARD = Card(
    name="gated_conv",
    make=GatedConv.Config,
    tiny={"d_model": 16},
    variants={"with biases and four taps": {"bias": True, "width": 4}},
    idea="short convolution between two gates",
    paper="2511.23404",
    state="(W - 1) D (model dtype)",
    cost="O(T D (D + W))",
    can=GatedConv.can,
)
