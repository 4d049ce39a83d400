"""Greedy: keep the drafts that are the argmax of the row before them.

The head's picks are argmaxes (the lowest id on a tie, fp32 logits), so the emitted tokens are plain greedy
decoding's, token for token, for any chain or tree.
"""

from collections.abc import Sequence

from stretto.core.card import Can, Card, Exactness
from stretto.core.drafter import Draft, Verdict
from stretto.core.judge import Head, Judge
from stretto.core.sampling import Noise
from stretto.engine.judges._shared import walk_picks


class Greedy(Judge):
    """Temperature 0 only: it lacks Can.SAMPLED."""

    can = Can.CHAIN | Can.TREE
    head: Head = "picks"

    def judge(self, draft: Draft, rows: Sequence[int], position: int, noise: Noise) -> Verdict:
        return walk_picks(draft, rows)


CARD = Card(
    name="greedy",
    make=Greedy,
    idea="keep the drafts that are the argmax",
    paper="1811.03115",
    can=Greedy.can,
    cost="O(N)",
    exactness=Exactness.EXACT,
)
