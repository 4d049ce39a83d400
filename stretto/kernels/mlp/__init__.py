"""The gated MLP of nearly every language model: y = (act(x W_gate^T) * x W_up^T) W_down^T. arXiv 2002.05202.

What lies between the products is not part of the interface: a backend may keep it in its own form.
"""

from torch import Tensor

from stretto.kernels.linear import Weight
from stretto.kernels.pick import Impl, pick
from stretto.kernels.rowwise import Activation

__all__ = ["gated_mlp"]

_ORDER: tuple[Impl, ...] = ("native", "torch", "reference")


def gated_mlp(
    x_TD: Tensor,
    gate_up: Weight,
    down: Weight,
    *,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    activation: Activation,
    num_step_rows: int = 0,
    impl: Impl = "auto",
) -> Tensor:
    """x [T, D] -> [T, D], in x.dtype.

    gate_up: [2 F, D], the rows of the gate first; down: [D, F]; biases [2 F] and [D]. activation: of the gate, SiLU or
    tanh-GELU. The bits of the first `num_step_rows` rows (decode, verification) depend neither on their number nor on
    other rows. Bound: the bytes of the weights for few rows, 6 T D F FLOP for many.
    """
    run = pick("mlp.gated_mlp", _ORDER, impl, x_TD, gate_up, down)
    biases = (gate_up_bias, down_bias)
    y: Tensor = run(x_TD, gate_up, down, biases, activation=activation, num_step_rows=num_step_rows)
    return y
