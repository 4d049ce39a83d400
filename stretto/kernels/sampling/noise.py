"""Counter-based noise: a function of (seed, child), absolute position, purpose and token, and of nothing else.

Batch-mates, preemption and the number of draws before never shift a stream; any part of it can be computed alone.
"""

import torch
from torch import Tensor

from stretto.core.sampling import Noise
from stretto.kernels.sampling import philox, reference
from stretto.kernels.sampling.reference import Purpose

_FEW = 6  # up to here Python integers are faster than arrays


def uniform(noise: Noise, position: int, purpose: Purpose, tokens: range | Tensor) -> Tensor:
    """[n] float64 in (0, 1) (exclusive; float32 would round to 1) for consecutive tokens or chosen ids [n] int64."""
    if len(tokens) <= _FEW:
        return torch.tensor(
            [reference.uniform(noise, position, purpose, t) for t in _list(tokens)], dtype=torch.float64
        )
    return philox.uniform(philox.words(noise, position, purpose, tokens))


def gumbel(noise: Noise, position: int, purpose: Purpose, tokens: range | Tensor) -> Tensor:
    """[n] float32 standard Gumbel noise, -log(-log(u)), for consecutive tokens or chosen ids [n] int64."""
    if len(tokens) <= _FEW:
        return torch.tensor([reference.gumbel(noise, position, purpose, t) for t in _list(tokens)], dtype=torch.float32)
    return philox.gumbel(philox.words(noise, position, purpose, tokens))


def gumbel_of_rows(noises: list[Noise], positions: list[int], purpose: Purpose, ids: list[Tensor]) -> list[Tensor]:
    """`gumbel` for several rows with few tokens each, in one call."""
    if len(ids) == 1:
        return [gumbel(noises[0], positions[0], purpose, ids[0])]
    flat = philox.gumbel(philox.words_of_rows(noises, positions, purpose, ids))
    return list(flat.split([len(i) for i in ids]))


def _list(tokens: range | Tensor) -> list[int]:
    return tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
