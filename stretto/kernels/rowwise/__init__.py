"""What a layer does to its rows between products: residual sums, gated activations, choosing rows.

residual_add    y = x + scale * branch
glu             y = act(gate) * up            act = SiLU (SwiGLU) or tanh-GELU (GeGLU), arXiv 2002.05202
take_rows       y_i = x_(rows_i)
divided         y = x / divisor
"""

from typing import Literal

from torch import Tensor

from stretto.kernels.pick import Impl, pick

__all__ = ["Activation", "divided", "glu", "residual_add", "take_rows"]

Activation = Literal["silu", "gelu_tanh"]
_ORDER: tuple[Impl, ...] = ("native", "torch", "reference")


def residual_add(x_TD: Tensor, branch_TD: Tensor, *, scale: float = 1.0, impl: Impl = "auto") -> Tensor:
    """x + scale * branch, [T, D]."""
    y: Tensor = pick("rowwise.residual_add", _ORDER, impl, x_TD)(x_TD, branch_TD, scale=scale)
    return y


def glu(
    gate_TF: Tensor, up_TF: Tensor, *, activation: Activation, num_step_rows: int = 0, impl: Impl = "auto"
) -> Tensor:
    """act(gate) * up, [T, F]. The bits of the first `num_step_rows` rows do not depend on other rows."""
    run = pick("rowwise.glu", _ORDER, impl, gate_TF)
    y: Tensor = run(gate_TF, up_TF, activation=activation, num_step_rows=num_step_rows)
    return y


def take_rows(x_TD: Tensor, rows_R: Tensor, *, impl: Impl = "auto") -> Tensor:
    """x [T, D] at rows [R] int64 (while a tape is recorded: at the step's `out_rows`) -> [R, D]."""
    y: Tensor = pick("rowwise.take_rows", _ORDER, impl, x_TD)(x_TD, rows_R)
    return y


def divided(x_TD: Tensor, divisor: float, *, impl: Impl = "auto") -> Tensor:
    """x / divisor, [T, D]."""
    y: Tensor = pick("rowwise.divided", _ORDER, impl, x_TD)(x_TD, divisor)
    return y
