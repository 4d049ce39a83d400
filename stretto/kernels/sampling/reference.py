"""The specification of sampling in plain Python: integers for the noise, float64 lists for the laws.

Noise is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011). One block
of four 32-bit words is a function of a 128-bit counter and a 64-bit key:

    ten rounds of  (c0, c1, c2, c3) -> (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)),
    the key growing by (W0, W1) between rounds

Word `token % 4` of counter (token // 4, position, purpose, 0) belongs to a token. All 32 bits are used:

    u = (word + 1/2) / 2^32    in (0, 1), exact in float64 (float32 would round the largest values to 1)
    gumbel = -log(-log(u))     in [-3.13, 22.87], computed in float64, rounded once to float32

Sampling needs the upper end of `u` finely resolved: of 49,152 equally likely tokens the winner has 1 - u near 2e-5, and
with 24 bits one such draw in 700 would be a tie.
"""

import math
from collections import Counter
from collections.abc import Sequence

from stretto.core.sampling import Noise, Sampling

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
MASK32, MASK64 = (1 << 32) - 1, (1 << 64) - 1
Block = tuple[int, int, int, int]


def philox(counter: Block, key: int) -> Block:
    """Four 32-bit words of Philox4x32-10; `key` has 64 bits, its low half is the first key word."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & MASK32, key >> 32
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK32
        k0, k1 = (k0 + W0) & MASK32, (k1 + W1) & MASK32
    return c0, c1, c2, c3


def splitmix64(seed: int, n: int) -> int:
    """The n-th output (n >= 1) of the generator splitmix64 started at `seed` (Steele, Lea, Flood 2014)."""
    z = (seed + n * 0x9E3779B97F4A7C15) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def key(noise: Noise) -> int:
    """The 64-bit Philox key of a stream: the seed itself for child 0, else a splitmix64 output."""
    seed = noise.seed & MASK64
    return splitmix64(seed, noise.child) if noise.child else seed


def word(noise: Noise, position: int, purpose: int, token: int) -> int:
    """The 32 random bits of one token at one absolute position."""
    return philox((token >> 2, position, purpose, 0), key(noise))[token & 3]


def uniform(noise: Noise, position: int, purpose: int, token: int) -> float:
    """u in (0, 1), a multiple of 2^-33."""
    return (word(noise, position, purpose, token) + 0.5) * 2.0**-32


def gumbel(noise: Noise, position: int, purpose: int, token: int) -> float:
    """Standard Gumbel noise in float64."""
    return -math.log(-math.log(uniform(noise, position, purpose, token)))


def law(
    logits: Sequence[float],
    sampling: Sampling,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    banned: Sequence[int] = (),
) -> dict[int, float]:
    """Token -> processed logit of the survivors: bias, penalties, mask, temperature, top_k, top_p, min_p in turn.

    `sampling` is resolved. Greedy keeps the lowest id of the largest logit. Empty if everything is masked.
    """
    x = [float(v) for v in logits]
    for token, bias in sampling.logit_bias.items():
        x[token] += bias
    repetition = sampling.repetition_penalty or 1.0
    for token in {*prompt, *output}:
        x[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
    for token, count in Counter(output).items():
        x[token] -= sampling.frequency_penalty * count + sampling.presence_penalty
    for token in banned:
        x[token] = -math.inf
    # Ties: the lower id counts as the likelier one, everywhere.
    order = sorted((t for t in range(len(x)) if x[t] > -math.inf), key=lambda t: (-x[t], t))
    if not order:
        return {}
    if sampling.temperature == 0:
        return {order[0]: 0.0}
    assert sampling.temperature and sampling.top_p and sampling.top_k is not None and sampling.min_p is not None
    z = {t: (x[t] - x[order[0]]) / sampling.temperature for t in order}
    if sampling.top_k > 0:
        order = order[: sampling.top_k]
    if sampling.top_p < 1:
        total, mass, kept = math.fsum(math.exp(z[t]) for t in order), 0.0, 0
        while kept < len(order) and mass < sampling.top_p * total:
            mass += math.exp(z[order[kept]])
            kept += 1
        order = order[:kept]
    return {t: z[t] for t in sorted(order) if math.exp(z[t]) >= sampling.min_p}
