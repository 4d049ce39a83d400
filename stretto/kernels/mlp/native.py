"""Gated MLPs recorded on the tape (mlp.cpp): what lies between the products is rounded where it is computed."""

import torch
from torch import Tensor

from stretto.kernels.linear import Weight
from stretto.kernels.linear.native import TILE, NativeWeight, fixed_point, fixed_point_rows, product
from stretto.kernels.native.guard import require
from stretto.kernels.native.tape import current, why_not_here
from stretto.kernels.rowwise import Activation


def why_not(x: Tensor, gate_up: Weight, down: Weight) -> str | None:
    """Quantized tiles of one codec for gate and up, quantized ones for down, and a tape must be there to record on."""
    if not (isinstance(gate_up, NativeWeight) and isinstance(down, NativeWeight)):
        return "the weights are not in tiles"
    if len(gate_up.parts) > 1 or any(part.codec.is_plain for part in (*gate_up.parts, *down.parts)):
        return "gate and up have two codecs, or a weight is not quantized"
    if down.shape[1] % TILE:
        return f"the hidden width is no multiple of {TILE}"
    return why_not_here()


def gated_mlp(
    x_TD: Tensor,
    gate_up: NativeWeight,
    down: NativeWeight,
    biases: tuple[Tensor | None, Tensor | None],
    *,
    activation: Activation,
    num_step_rows: int,
) -> Tensor:
    """See `stretto.kernels.mlp.gated_mlp`; x fp32 (rows contiguous). Every row is reproducible, and has the bits of the
    three operations by themselves."""
    tape, ((part,), bias), d_hidden = current(), (gate_up.parts, biases[0]), down.shape[1]
    require(x_TD.dtype == torch.float32 and x_TD.stride(1) == 1, "multiplies what are no fp32 rows")
    assert gate_up.shape == (2 * d_hidden, x_TD.shape[1])
    assert bias is None or (bias.dtype == torch.float32 and bias.is_contiguous())
    fixed, hidden = fixed_point(x_TD), fixed_point_rows(x_TD, d_hidden)
    tape.emit(
        "gated",
        rows=tape.rows(x_TD),
        d_in=x_TD.shape[1],
        d_hidden=d_hidden,
        format=tape.library.code("Format", part.codec.name),
        coarse_prompts=tape.coarse_prompts,
        act=tape.library.code("Activation", activation),
        tiles=part.data,
        bias=bias,
        fixed=fixed,
        out=hidden,
    )
    return product(hidden, hidden, down, biases[1])
