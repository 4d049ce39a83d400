"""The specification of `gated_mlp`, in fp64, rounded once."""

from torch import Tensor

from stretto.kernels.linear import Weight
from stretto.kernels.linear import reference as product
from stretto.kernels.rowwise import Activation
from stretto.kernels.rowwise import reference as rows


def why_not(x: Tensor, gate_up: Weight, down: Weight) -> str | None:
    """Any plain tensors will do."""
    return product.why_not(x, gate_up) or product.why_not(x, down)


def gated_mlp(
    x_TD: Tensor,
    gate_up: Tensor,
    down: Tensor,
    biases: tuple[Tensor | None, Tensor | None],
    *,
    activation: Activation,
    num_step_rows: int,
) -> Tensor:
    """See `stretto.kernels.mlp.gated_mlp`."""
    gate, up = product.linear(x_TD.double(), gate_up, biases[0], num_step_rows=0).chunk(2, dim=1)
    h = rows.glu(gate, up, activation=activation, num_step_rows=0)
    return product.linear(h, down, biases[1], num_step_rows=0).to(x_TD.dtype)
