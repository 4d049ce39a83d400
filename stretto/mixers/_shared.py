"""Parts of recurrent mixers: what stands before and behind the recurrence, which is the mixer's own.

x, ... = u W_in -> x = silu(short_conv(x)) -> recurrence over a memory -> y = norm(y) gated by silu(z) -> y W_out
"""

import math

import torch
from torch import Tensor, nn

from stretto.core.card import Can
from stretto.core.errors import UserError
from stretto.core.mixer import Mixer
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache, Slot, StateSpec, slot
from stretto.kernels.linear import Linear
from stretto.kernels.rmsnorm import rms_norm
from stretto.kernels.rowwise import glu
from stretto.kernels.short_conv import short_conv


def check_groups(mixer: str, **counts: int) -> None:
    """UserError unless the first count (of heads) is a multiple of the second (of groups that share something)."""
    (heads, num_heads), (groups, num_groups) = counts.items()
    if num_heads % num_groups:
        raise UserError(
            f"{mixer}: {heads} {num_heads} is no multiple of {groups} {num_groups}",
            why="heads of a group share their keys, and all groups have the same number of heads",
            try_=f"{groups} that divides {heads}",
        )


def time_step_bias(num: int) -> nn.Parameter:
    """[num], such that its softplus is log-uniform between 0.001 and 0.1: the start of Mamba (arXiv 2312.00752)."""
    dt = torch.empty(num).uniform_(math.log(1e-3), math.log(1e-1)).exp().clamp(min=1e-4)
    return nn.Parameter(dt + torch.log(-torch.expm1(-dt)))


def widen(x: Tensor) -> Tensor:
    """`x` in fp32, or wider if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def tile_heads(x_TGK: Tensor, times: int) -> Tensor:
    """All heads of a row, `times` over, [T, times * G, K]: for heads that share a key with no neighbour, but with every
    G-th head."""
    if times == 1:
        return x_TGK
    return torch.cat([x_TGK.flatten(1)] * times, -1).view(len(x_TGK), -1, x_TGK.shape[-1])


class Recurrent(Mixer):
    """A mixer whose state lies in slots: the parts of it that are not its own.

    It has up to two tensors per sequence: `conv`, the last inputs of the convolution, and `memory`, what the recurrence
    carries. Parameters have the names by which files are read: conv_weight, conv_bias, norm_weight, out_proj.
    """

    can = Can.CAUSAL | Can.PACKED | Can.SNAPSHOT | Can.CHAIN | Can.TREE | Can.BITWISE_CAUSAL

    def __init__(
        self,
        d_model: int,
        d_inner: int,
        *,
        memory: tuple[int, ...],
        conv: tuple[int, int] | None = None,
        conv_bias: bool = False,
        norm: int | None = None,
        out_bias: bool = False,
    ) -> None:
        """d_inner: numbers per token before the projection out. memory: shape of what the recurrence carries. conv:
        channels and taps of the convolution, None = there is none. norm: length of the weight of the output norm."""
        super().__init__()
        self.d_model, self.memory_shape, self.conv_shape = d_model, memory, conv
        if conv is not None:  # uniform within 1 / sqrt(taps): the start of torch's convolutions
            self.conv_weight = nn.Parameter(torch.empty(conv).uniform_(-(conv[1] ** -0.5), conv[1] ** -0.5))
            self.conv_bias = nn.Parameter(torch.zeros(conv[0])) if conv_bias else None
        self.norm_weight = None if norm is None else nn.Parameter(torch.ones(norm))
        self.out_proj = Linear(d_inner, {"out": d_model}, bias=out_bias)

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        # fp32 or wider: thousands of updates would wear a narrow number out.
        memory = StateSpec(name="memory", shape=self.memory_shape, dtype=torch.float32, kind="slot")
        if self.conv_shape is None:
            return (memory,)
        channels, taps = self.conv_shape
        return StateSpec(name="conv", shape=(taps - 1, channels), kind="slot"), memory

    def memory(self, cache: LayerCache | None) -> Slot | None:
        """Where the recurrence reads and writes; None in training."""
        return None if cache is None else slot(cache, "memory")

    def conv_silu(self, x_TC: Tensor, seqs: Seqs, cache: LayerCache | None) -> Tensor:
        """silu(short_conv(x)), [T, C] in x.dtype."""
        state = None if cache is None else slot(cache, "conv")
        return short_conv(x_TC, self.conv_weight, self.conv_bias, seqs=seqs, state=state, activation="silu")

    def gated_output(
        self, y: Tensor, z_TF: Tensor, seqs: Seqs, *, eps: float = 1e-5, groups: int = 1, norm_before_gate: bool = True
    ) -> Tensor:
        """out_proj(norm(y) * silu(z)), [T, D] in z.dtype; not `norm_before_gate`: norm(y * silu(z)).

        y: [T, F], or [T, H, V] and then normalised per head, fp32 or wider; z: [T, F] in the dtype of the layer. The
        norm is an RMSNorm over the last dimension of y, cut into `groups`.
        """
        gate = widen(z_TF.view(y.shape))
        if self.norm_weight is None:
            y = glu(gate, y, activation="silu", num_step_rows=len(y))
        else:
            y = rms_norm(y, self.norm_weight, eps=eps, groups=groups, gate=gate, norm_before_gate=norm_before_gate)
        out: Tensor = self.out_proj(y.flatten(1).to(z_TF.dtype), seqs)
        return out
