"""Products and activation one after the other, each by the backend that reads its weights."""

from torch import Tensor

from stretto.kernels.linear import Weight, matmul
from stretto.kernels.rowwise import Activation, glu


def why_not(x: Tensor, gate_up: Weight, down: Weight) -> str | None:
    """It always can."""
    return None


def gated_mlp(
    x_TD: Tensor,
    gate_up: Weight,
    down: Weight,
    biases: tuple[Tensor | None, Tensor | None],
    *,
    activation: Activation,
    num_step_rows: int,
) -> Tensor:
    """See `stretto.kernels.mlp.gated_mlp`."""
    gate_TF, up_TF = matmul(x_TD, gate_up, biases[0], num_step_rows=num_step_rows).chunk(2, dim=1)
    h_TF = glu(gate_TF, up_TF, activation=activation, num_step_rows=num_step_rows)
    return matmul(h_TF, down, biases[1], num_step_rows=num_step_rows)
