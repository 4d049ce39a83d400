"""Channel mixing of RWKV: squared ReLU over a mixture of each token with the one before it.

    x'_t = x_{t-1}                                     zero before the text; in a draft tree, the parent
    k = max((x + mu_k * (x' - x)) W_k, 0)^2            y = (k W_v) * sigmoid((x + mu_r * (x' - x)) W_r)

The receptance r is absent in RWKV-7. Papers: RWKV-4 arXiv 2305.13048, 5 and 6 2404.05892, 7 2503.14456. The state is
the last input row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stretto.core.card import Card
from stretto.core.channel import Channel
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache, StateSpec, slot
from stretto.kernels.linear import Linear
from stretto.kernels.pointwise import sigmoid
from stretto.kernels.short_conv import short_conv


class RWKVCmix(Channel):
    """See the module docstring."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """d_hidden: width between the two products."""

        d_model: int
        d_hidden: int
        receptance: bool = True

        def build(self) -> "RWKVCmix":
            return RWKVCmix(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        self.d_model = c.d_model
        self.mu_k = nn.Parameter(torch.full((c.d_model,), 0.5))
        self.key = Linear(c.d_model, {"key": c.d_hidden})
        self.value = Linear(c.d_hidden, {"value": c.d_model})
        if c.receptance:
            self.mu_r = nn.Parameter(torch.full((c.d_model,), 0.5))
            self.receptance = Linear(c.d_model, {"receptance": c.d_model})

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        return (StateSpec(name="shift", shape=(1, self.d_model), kind="slot"),)

    def forward(self, x_TD: Tensor, seqs: Seqs, cache: LayerCache | None = None) -> Tensor:
        """[T, D] -> [T, D]."""
        before = torch.tensor([1.0, 0.0], dtype=x_TD.dtype, device=x_TD.device)  # the row before, and not the row
        state = None if cache is None else slot(cache, "shift")
        change_TD = short_conv(x_TD, before.repeat(self.d_model, 1), seqs=seqs, state=state) - x_TD
        k_TF = self.key(x_TD + self.mu_k * change_TD, seqs).relu().square()
        y_TD: Tensor = self.value(k_TF, seqs)
        if not self.config.receptance:
            return y_TD
        return y_TD * sigmoid(self.receptance(x_TD + self.mu_r * change_TD, seqs))


CARD = Card(
    name="rwkv_cmix",
    make=RWKVCmix.Config,
    tiny={"d_model": 16, "d_hidden": 24},
    idea="squared ReLU over a mixture of each token with the one before it",
    paper="2404.05892",
    can=RWKVCmix.can,
    state="D",
    cost="O(T D F)",
)
