"""Ratio: accept a drawn token with probability min(1, p/q), replace a rejected one from the residual law.

For a chain whose tokens x were drawn from draft laws q, with target laws p (both after all processing):

    accept x  iff  u q(x) < p(x), u uniform          (no division, so a tiny q is harmless)
    first rejection:  emit y ~ max(p - q, 0), normalised, and stop
    no rejection:     emit y ~ p of the last row

    P(out = x) = q min(1, p/q) + (1 - b) (p - min(p, q)) / (1 - b) = p(x),   b = sum of min(p, q) = 1 - TV(p, q)

A residual of mass < 1e-6 is a rounding artefact of nearly equal laws: then y ~ p. A draft without laws was chosen, not
drawn (point masses): draw y ~ p at every row and move to the child that holds it; that also covers trees. Trees of
drawn tokens need another judge.

The text follows the law of plain sampling but is not the text of the same seed without drafts (that is `coupled`).
Source: arXiv 2211.17192.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from stretto.core.card import Can, Card, Exactness
from stretto.core.drafter import Draft, Verdict
from stretto.core.judge import Head, Judge
from stretto.core.sampling import Noise
from stretto.engine.judges._shared import walk
from stretto.kernels.sampling import Purpose, draw

Draw = Callable[[Noise, int, Purpose], float]
_RESIDUAL_FLOOR = 1e-6


def accepts(u: float, target_prob: float, draft_prob: float) -> bool:
    """True for a share min(1, target/draft) of u in (0, 1)."""
    return u * draft_prob < target_prob


def residual(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """[W] weights of the token that replaces a rejected one, not normalised."""
    weights = (target_probs - draft_probs).clamp_min(0)
    return weights if float(weights.sum()) >= _RESIDUAL_FLOOR else target_probs


def inverse(weights: Tensor, u: float) -> int:
    """The token at quantile u of `weights` [W] >= 0, which need not sum to 1; never one of weight 0."""
    through = weights.double().cumsum(0)
    token = int(torch.searchsorted(through, u * through[-1], right=True))
    assert weights[token] > 0, "a law has mass"
    return token


class Ratio(Judge):
    """draw: where u comes from (an argument, so that the law can be integrated instead of sampled)."""

    can = Can.CHAIN | Can.TREE | Can.SAMPLED
    head: Head = "probs"

    def __init__(self, draw: Draw = draw) -> None:
        self._draw = draw

    def judge(self, draft: Draft, rows: Tensor, position: int, noise: Noise) -> Verdict:
        assert len(rows) == len(draft) + 1

        def plain(row: int, depth: int) -> int:
            return inverse(rows[row], self._draw(noise, position + depth, Purpose.TOKEN))

        if draft.probs is None:
            return walk(draft, plain)
        assert draft.tree.is_chain, "a judge without Can.DRAWN_TREE is given no tree of drawn tokens"
        draft_probs = draft.probs.to(rows.device)
        for i, token in enumerate(draft.tokens):
            u = self._draw(noise, position + i, Purpose.ACCEPT)
            if not accepts(u, float(rows[i, token]), float(draft_probs[i, token])):
                weights = residual(rows[i], draft_probs[i])
                last = inverse(weights, self._draw(noise, position + i, Purpose.RESIDUAL))
                return Verdict(tuple(range(1, i + 1)), (*draft.tokens[:i], last))
        return Verdict(tuple(range(1, len(draft) + 1)), (*draft.tokens, plain(len(draft), len(draft))))


CARD = Card(
    name="ratio",
    make=Ratio,
    idea="accept with probability p/q, else draw from what is left of p",
    paper="2211.17192",
    can=Ratio.can,
    cost="O(N W)",
    exactness=Exactness.LOSSLESS,
)
