"""Gated MLP: the channel of nearly every language model since 2020.

    y = (act(x W_gate^T) * x W_up^T) W_down^T        act = SiLU (SwiGLU) or tanh-GELU (GeGLU)

Paper: arXiv 2002.05202. Gate and up are two segments of one matrix, so x is read once.
"""

from dataclasses import dataclass

from torch import Tensor

from stretto.core.card import Card
from stretto.core.channel import Channel
from stretto.core.seqs import Seqs
from stretto.kernels.linear import Linear
from stretto.kernels.mlp import gated_mlp
from stretto.kernels.rowwise import Activation, glu


class Dense(Channel):
    """See the module docstring."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """d_hidden: width between the two products; activation: of the gate."""

        d_model: int
        d_hidden: int
        activation: Activation = "silu"
        bias: bool = False

        def build(self) -> "Dense":
            return Dense(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.d_model = config, config.d_model
        self.gate_up = Linear(config.d_model, {"gate": config.d_hidden, "up": config.d_hidden}, config.bias)
        self.down = Linear(config.d_hidden, {"down": config.d_model}, config.bias)

    def forward(self, x_TD: Tensor, seqs: Seqs) -> Tensor:
        """[T, D] -> [T, D]."""
        if not (self.gate_up.is_plain and self.down.is_plain):  # one product after the other
            gate_TF, up_TF = self.gate_up.split(self.gate_up(x_TD, seqs))
            h_TF = glu(gate_TF, up_TF, activation=self.config.activation, num_step_rows=seqs.num_step_rows)
            return self.down(h_TF, seqs)  # type: ignore[no-any-return]
        return gated_mlp(
            x_TD,
            self.gate_up.held,
            self.down.held,
            gate_up_bias=self.gate_up.bias,
            down_bias=self.down.bias,
            activation=self.config.activation,
            num_step_rows=seqs.num_step_rows,
        )


CARD = Card(
    name="dense",
    make=Dense.Config,
    tiny={"d_model": 16, "d_hidden": 24},
    idea="gated multi-layer perceptron",
    paper="2002.05202",
    cost="O(T D F)",
    can=Dense.can,
)
