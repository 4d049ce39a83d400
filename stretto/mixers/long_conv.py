"""Simple long convolution: every channel learns its kernel, one number per lag.

    k = squash(kernel) = sign(kernel) * max(|kernel| - lam, 0)
    h_t = sum_{j < max_len} k_j * x_{t-j} + skip * x_t         y = value(gelu(h)) * sigmoid(gate(gelu(h)))

The squash zeroes small taps, which is all the regularisation a free kernel needs. Inputs more than max_len - 1 tokens
back are not seen. GELU is the tanh form, x sigmoid(1.5958 (x + 0.0447 x^3)). Initial kernels decay geometrically,
faster in later channels.

Paper: arXiv 2302.06646. Differs from it: no dropout inside the layer (of the kernel or of activations).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stretto.core.card import Can, Card
from stretto.core.mixer import Mixer
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache, StateSpec, paged
from stretto.kernels.fftconv import fftconv
from stretto.kernels.linear import Linear
from stretto.kernels.pointwise import sigmoid


class LongConv(Mixer):
    """See the module docstring."""

    can = Can.CAUSAL | Can.PACKED | Can.SNAPSHOT | Can.CHAIN | Can.TREE

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """max_len: taps per channel. lam: taps smaller than this count as zero (with the initial scale of 0.02, a
        lam of 0.1 would zero every tap and its gradient)."""

        d_model: int
        max_len: int
        lam: float = 0.002

        def build(self) -> "LongConv":
            return LongConv(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        assert c.d_model > 0 and c.max_len > 0 and c.lam >= 0
        self.d_model = c.d_model
        self.kernel = nn.Parameter(torch.empty(c.d_model, c.max_len))
        self.skip = nn.Parameter(torch.empty(c.d_model))
        self.out = Linear(c.d_model, {"value": c.d_model, "gate": c.d_model}, bias=True)
        if not self.kernel.is_meta:
            rate_D = (c.d_model / 2) ** (torch.arange(c.d_model) / c.d_model)
            decay_DL = torch.exp(-rate_D[:, None] * torch.arange(c.max_len) / c.max_len)
            with torch.no_grad():
                self.kernel.copy_(0.02 * torch.randn(c.d_model, c.max_len) * decay_DL)
            nn.init.normal_(self.skip)

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        return (StateSpec(name="u", shape=(self.d_model,), kind="paged"),)

    def forward(self, x_TD: Tensor, seqs: Seqs, cache: LayerCache | None = None) -> Tensor:
        """[T, D] -> [T, D]. The kernel, the sum and the activation are computed in fp32 or wider."""
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        kernel_DL = self.kernel.to(wide)
        kernel_DL = kernel_DL.sign() * (kernel_DL.abs() - self.config.lam).relu()
        h_TD = fftconv(x_TD.to(wide), kernel_DL, seqs=seqs, history=paged(cache, "u") if cache is not None else None)
        h_TD = _gelu(h_TD + self.skip.to(wide) * x_TD)
        value_TD, gate_TD = self.out.split(self.out(h_TD.to(x_TD.dtype), seqs))
        return value_TD * sigmoid(gate_TD)


def _gelu(x: Tensor) -> Tensor:
    """0.5 x (1 + tanh z) = x sigmoid(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3), with the same bits in every row."""
    return x * sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))


CARD = Card(
    name="long_conv",
    make=LongConv.Config,
    tiny={"d_model": 8, "max_len": 48},
    idea="convolution with a freely learned kernel as long as the text",
    paper="2302.06646",
    state="D per token (KV dtype)",
    cost="O(T log T D) for a text, O(L D) per decoded token",
    can=LongConv.can,
)
