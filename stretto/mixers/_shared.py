"""Parts of recurrent mixers: what stands before and behind the recurrence, which is the mixer's own.

    x, ... = u W_in -> x = silu(short_conv(x)) -> recurrence over a memory -> y = norm(y) gated by silu(z) -> y W_out

A mixer holds the parameters, under the names by which files are read, and passes them in. Its state has up to two
tensors per sequence: `conv`, the last inputs of the convolution, and `memory`, what the recurrence carries.
"""

import math

import torch
from torch import Tensor, nn

from stretto.core.card import Can
from stretto.core.errors import UserError
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache, Slot, StateSpec, slot
from stretto.kernels.linear import Linear
from stretto.kernels.rmsnorm import rms_norm
from stretto.kernels.rowwise import glu
from stretto.kernels.short_conv import short_conv

RECURRENT = Can.CAUSAL | Can.PACKED | Can.SNAPSHOT | Can.CHAIN | Can.TREE | Can.BITWISE_CAUSAL
"""What a mixer can whose state lies in slots: its kernels work row by row and replay what was accepted."""


def check_groups(mixer: str, **counts: int) -> None:
    """UserError unless the first count (of heads) is a multiple of the second (of groups that share something)."""
    (heads, num_heads), (groups, num_groups) = counts.items()
    if num_heads % num_groups:
        raise UserError(
            f"{mixer}: {heads} {num_heads} is no multiple of {groups} {num_groups}",
            why="heads of a group share their keys, and all groups have the same number of heads",
            try_=f"{groups} that divides {heads}",
        )


# -- parameters and state ----------------------------------------------------------------------------------------------


def conv_weight(channels: int, width: int) -> nn.Parameter:
    """[C, W], uniform within 1 / sqrt(W): the start of torch's convolutions."""
    return nn.Parameter(torch.empty(channels, width).uniform_(-(width**-0.5), width**-0.5))


def time_step_bias(num: int) -> nn.Parameter:
    """[num], such that its softplus is log-uniform between 0.001 and 0.1: the start of Mamba (arXiv 2312.00752)."""
    dt = torch.empty(num).uniform_(math.log(1e-3), math.log(1e-1)).exp().clamp(min=1e-4)
    return nn.Parameter(dt + torch.log(-torch.expm1(-dt)))


def conv_state(channels: int, width: int) -> StateSpec:
    """The inputs that the next rows of a convolution see, (W - 1, C)."""
    return StateSpec(name="conv", shape=(width - 1, channels), kind="slot")


def memory_state(*shape: int) -> StateSpec:
    """What a recurrence carries, in fp32 or wider: thousands of updates would wear a narrow number out."""
    return StateSpec(name="memory", shape=shape, dtype=torch.float32, kind="slot")


def memory(cache: LayerCache | None) -> Slot | None:
    """The state that `memory_state` declares; None in training."""
    return None if cache is None else slot(cache, "memory")


# -- in front of the recurrence and behind it --------------------------------------------------------------------------


def widen(x: Tensor) -> Tensor:
    """`x` in fp32, or wider if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def conv_silu(x_TC: Tensor, weight: Tensor, bias: Tensor | None, seqs: Seqs, cache: LayerCache | None) -> Tensor:
    """silu(short_conv(x)), [T, C] in x.dtype, with the state that `conv_state` declares."""
    state = None if cache is None else slot(cache, "conv")
    return short_conv(x_TC, weight, bias, seqs=seqs, state=state, activation="silu")


def gated_output(
    y: Tensor,
    z_TF: Tensor,
    out_proj: Linear,
    seqs: Seqs,
    *,
    norm: Tensor | None = None,
    eps: float = 1e-5,
    groups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor:
    """out_proj(norm(y) * silu(z)), [T, D] in z.dtype; not `norm_before_gate`: norm(y * silu(z)).

    y: [T, F], or [T, H, V] and then normalised per head, fp32 or wider; z: [T, F] in the dtype of the layer; norm: the
    weight of an RMSNorm over the last dimension of y, cut into `groups`; None = no norm.
    """
    gate = widen(z_TF.view(y.shape))
    if norm is None:
        y = glu(gate, y, activation="silu", num_step_rows=len(y))
    else:
        y = rms_norm(y, norm, eps=eps, groups=groups, gate=gate, norm_before_gate=norm_before_gate)
    out: Tensor = out_proj(y.flatten(1).to(z_TF.dtype), seqs)
    return out
