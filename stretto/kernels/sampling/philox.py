"""Philox noise over many tokens at once: uint64 arithmetic in numpy, logarithms in torch.

Work per token: 1/4 block of 20 multiplications, two float64 logarithms. Every value equals reference.py's.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stretto.core.sampling import Noise
from stretto.kernels.sampling import reference
from stretto.kernels.sampling.reference import M0, M1, MASK32, W0, W1

Words = NDArray[np.uint64]
_SHIFT = np.uint64(32)


def philox(c0: Words, c1: Words | int, c2: int, k0: Words | int, k1: Words | int) -> tuple[Words, Words, Words, Words]:
    """Four words per counter (c0, c1, c2, 0); the arguments broadcast and hold 32 bits each."""
    x0, x1, x2, x3 = c0, _words(c1), _words(c2), _words(0)
    m0, m1, mask = np.uint64(M0), np.uint64(M1), np.uint64(MASK32)
    key0, key1 = _words(k0), _words(k1)
    for _ in range(10):
        p0, p1 = m0 * x0, m1 * x2
        x0, x1, x2, x3 = (p1 >> _SHIFT) ^ x1 ^ key0, p1 & mask, (p0 >> _SHIFT) ^ x3 ^ key1, p0 & mask
        key0, key1 = (key0 + np.uint64(W0)) & mask, (key1 + np.uint64(W1)) & mask
    return x0, x1, x2, x3


def words(noise: Noise, position: int, purpose: int, tokens: range | Tensor) -> Words:
    """[n] the 32 random bits of every token: a whole range (four tokens per block) or chosen ids [n] int64."""
    key = reference.key(noise)
    if isinstance(tokens, Tensor):
        ids = tokens.cpu().numpy().astype(np.uint64)
        return _choose(ids, philox(ids >> np.uint64(2), position, purpose, key & MASK32, key >> 32))
    assert tokens.step == 1, "a range of consecutive tokens"
    first = tokens.start // 4
    blocks = np.arange(first, -(-tokens.stop // 4), dtype=np.uint64)
    four = np.stack(philox(blocks, position, purpose, key & MASK32, key >> 32), axis=1).reshape(-1)
    return four[tokens.start - 4 * first : tokens.stop - 4 * first]


def words_of_rows(noises: list[Noise], positions: list[int], purpose: int, ids: list[Tensor]) -> Words:
    """[sum of n] the bits of chosen ids [n] of several rows, one call for all."""
    sizes = [len(i) for i in ids]
    keys = np.repeat(np.array([reference.key(n) for n in noises], dtype=np.uint64), sizes)
    where = np.repeat(np.array(positions, dtype=np.uint64), sizes)
    flat = torch.cat(ids).cpu().numpy().astype(np.uint64)
    return _choose(flat, philox(flat >> np.uint64(2), where, purpose, keys & np.uint64(MASK32), keys >> _SHIFT))


def uniform(bits: Words) -> Tensor:
    """u in (0, 1), float64, exact."""
    return torch.from_numpy((bits.astype(np.float64) + 0.5) * 2.0**-32)


def gumbel(bits: Words) -> Tensor:
    """Standard Gumbel noise: float64 arithmetic rounded once to float32."""
    return uniform(bits).log_().neg_().log_().neg_().float()


def _words(value: Words | int) -> Words:
    return np.asarray(value, dtype=np.uint64).reshape(-1)


def _choose(ids: Words, four: tuple[Words, Words, Words, Words]) -> Words:
    return np.stack(four)[(ids & np.uint64(3)).astype(np.int64), np.arange(len(ids))]
