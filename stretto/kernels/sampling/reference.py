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

import enum
import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from stretto.core.errors import UserError
from stretto.core.sampling import Noise, Sampling
from stretto.kernels.native.library import Team
from stretto.kernels.sampling.rows import Logprobs, Refusals, RowSampling, check_ids, forbidden_ids, refusal

if TYPE_CHECKING:
    from torch import Tensor

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
MASK32, MASK64 = (1 << 32) - 1, (1 << 64) - 1
Block = tuple[int, int, int, int]


class Purpose(enum.IntEnum):
    """What a draw is for. Different purposes are independent streams; the numbers are part of the format."""

    TOKEN = 0  # the token that plain sampling draws at a position
    ACCEPT = 1  # whether a draft token is accepted
    RESIDUAL = 2  # the token that replaces a rejected one
    DRAFT = 3  # what a drafter draws


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


def adjusted(
    logits: Sequence[float],
    sampling: Sampling,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    banned: Collection[int] = (),
) -> list[float]:
    """[W]: the logits with bias, penalties and mask."""
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
    return x


def law(
    logits: Sequence[float],
    sampling: Sampling,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    banned: Collection[int] = (),
) -> dict[int, float]:
    """Token -> processed logit of the survivors: bias, penalties, mask, temperature, top_k, top_p, min_p in turn.

    `sampling` is resolved. Greedy keeps the lowest id of the largest logit. Empty if everything is masked.
    """
    x = adjusted(logits, sampling, prompt, output, banned)
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


def why_not(x: "Tensor", threads: Team | None) -> str | None:
    """It always can."""
    return None


def choose(
    xs: "Sequence[Tensor]", rows: Sequence[RowSampling], argmax: Sequence[int], threads: Team | None
) -> tuple[list[int], Refusals]:
    """The largest sum of processed logit and noise among the survivors of every row [W]."""
    chosen, refused = list(argmax), Refusals()
    for r, (x, row) in enumerate(zip(xs, rows, strict=True)):
        try:
            survivors = _law_of(x, row)
        except UserError as why:
            refused[r] = why
            continue
        score = {t: z + gumbel(row.noise, row.position, Purpose.TOKEN, t) for t, z in survivors.items()}
        chosen[r] = max(sorted(score), key=score.__getitem__)
    return chosen, refused


def probs(x: "Tensor", rows: Sequence[RowSampling]) -> "tuple[Tensor, Refusals]":
    """[R, W]: the law of every row; token 0 where there is none."""
    import torch

    found, refused = torch.zeros_like(x), Refusals()
    for r, row in enumerate(rows):
        try:
            survivors = _law_of(x[r], row)
        except UserError as why:
            refused[r], survivors = why, {0: 0.0}
        total = math.fsum(map(math.exp, survivors.values()))
        for token, z in survivors.items():
            found[r, token] = math.exp(z) / total
    return found, refused


def logprobs(x: "Tensor", chosen: "Tensor", k: int) -> Logprobs:
    """Of the raw logits [R, W]; k <= W."""
    import torch

    values = torch.empty_like(x)
    best = torch.empty((len(x), k), dtype=torch.int64, device=x.device)
    for r, row in enumerate(x.tolist()):
        top = max(row)
        log_total = top + math.log(math.fsum(math.exp(v - top) for v in row))
        values[r] = torch.tensor([v - log_total for v in row], dtype=x.dtype)
        best[r] = torch.tensor([t for _, t in sorted((-v, t) for t, v in enumerate(row))][:k], dtype=torch.int64)
    return Logprobs(values.gather(1, chosen[:, None]).squeeze(1), best, values.gather(1, best))


def _law_of(x: "Tensor", row: RowSampling) -> dict[int, float]:
    """`law` as a row says. Raises UserError if no token is allowed, RunError for NaN or +inf."""
    check_ids(row.sampling.logit_bias, len(x))
    check_ids(row.banned, len(x))
    banned = {*row.banned}
    if row.allowed is not None:
        banned.update(forbidden_ids(row.allowed, len(x)))
    how = row.sampling, row.prompt, (*row.output, *row.path), banned
    values = adjusted(x.tolist(), *how)
    top = math.nan if any(map(math.isnan, values)) else max(values)
    if not math.isfinite(top):
        raise refusal(top)
    return law(x.tolist(), *how)
