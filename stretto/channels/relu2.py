"""Squared ReLU: two matrices and no gate, with hidden rows of which most numbers are zero.

    y = max(x W_up^T, 0)^2 W_down^T

Paper: Primer, arXiv 2109.08668; the channel of Nemotron and of the MLPs of RWKV.
"""

from dataclasses import dataclass

from torch import Tensor

from stretto.core.card import Card
from stretto.core.channel import Channel
from stretto.core.seqs import Seqs
from stretto.kernels.linear import Linear


class ReLU2(Channel):
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """d_hidden: width between the two products."""

        d_model: int
        d_hidden: int
        bias: bool = False

        def build(self) -> "ReLU2":
            return ReLU2(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.d_model = config, config.d_model
        self.up = Linear(config.d_model, {"up": config.d_hidden}, config.bias)
        self.down = Linear(config.d_hidden, {"down": config.d_model}, config.bias)

    def forward(self, x_TD: Tensor, seqs: Seqs) -> Tensor:
        """[T, D] -> [T, D]."""
        y_TD: Tensor = self.down(self.up(x_TD, seqs).relu().square(), seqs)
        return y_TD


CARD = Card(
    name="relu2",
    make=ReLU2.Config,
    tiny={"d_model": 16, "d_hidden": 24},
    idea="multi-layer perceptron with squared ReLU",
    paper="2109.08668",
    cost="O(T D F)",
    can=ReLU2.can,
)
