"""Rotary position embeddings (arXiv 2104.09864) and the ways checkpoints stretch them.

Pairs (x_i, x_{i + dim/2}) of the first `dim` entries of a head are rotated by position * theta_i,
theta_i = base^(-2i / dim) (half-split order, as HF checkpoints store it; GGUF's interleaved order is undone at load).
Tables are fp32, positions int64; products are rounded once, to the dtype of x.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.kernels.pick import Impl, pick

__all__ = ["Rope", "apply_rope", "rope_tables"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """Which angles. dim: rotated entries per head; scaling: how long contexts are reached.

    default: none. linear: positions divided by `factor`. llama3: long waves divided by `factor`, short ones kept, a
    ramp between. yarn: arXiv 2309.00071, with its attention factor on both tables. divisors: theta_i divided by
    divisors[i] (the `rope_freqs` tensor of GGUF files).
    """

    dim: int
    base: float = 10000.0
    scaling: Literal["default", "linear", "llama3", "yarn", "divisors"] = "default"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    divisors: tuple[float, ...] = ()

    def frequencies(self) -> Tensor:
        """theta [dim / 2] in fp32: radians per position."""
        exponents = torch.arange(0, self.dim, 2, dtype=torch.int64).float() / self.dim
        theta = 1.0 / (self.base**exponents)
        if self.scaling == "linear":
            return theta / self.factor
        if self.scaling == "divisors":
            return theta / torch.tensor(self.divisors)
        if self.scaling == "llama3":
            return self._llama3(theta)
        if self.scaling == "yarn":
            return self._yarn(theta)
        return theta

    def _llama3(self, theta: Tensor) -> Tensor:
        wavelength = 2 * math.pi / theta
        turns = self.original_context / wavelength
        smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return torch.lerp(theta / self.factor, theta, smooth.clamp(0, 1))

    def _yarn(self, theta: Tensor) -> Tensor:
        def index(turns: float) -> float:
            return self.dim * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(self.base))

        low, high = max(math.floor(index(self.beta_fast)), 0), min(math.ceil(index(self.beta_slow)), self.dim - 1)
        ramp = ((torch.arange(self.dim // 2).float() - low) / max(high - low, 1e-3)).clamp(0, 1)
        return theta * (1 - ramp) + theta / self.factor * ramp

    @property
    def magnitude(self) -> float:
        """What multiplies cos and sin (yarn only)."""
        if self.scaling != "yarn":
            return 1.0
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor


def rope_tables(rope: Rope, positions: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, sin) [T, dim / 2] in fp32 for int64 positions [T]."""
    angles = positions.to(torch.float32)[:, None] * rope.frequencies().to(positions.device)
    return angles.cos() * rope.magnitude, angles.sin() * rope.magnitude


def apply_rope(x_THK: Tensor, rope: Rope, seqs: Seqs, *, impl: Impl = "auto") -> Tensor:
    """x [T, H, K] with the first `rope.dim` entries of every head rotated by the positions of `seqs`; arithmetic in
    fp32 or wider."""
    turned: Tensor = pick("rope", ("native", "torch", "reference"), impl, x_THK)(x_THK, rope, seqs)
    return turned
