"""Coupled: keep the drafts that are what plain sampling with this seed draws.

Plain sampling draws argmax(processed logit + gumbel), with noise fixed by (seed, absolute position). The head computes
that pick for every row; a draft stays while it equals the pick before it. The text is that of the same seed without
drafts, bit for bit, for any draft, batch or preemption. A drafter that draws its tokens with the same noise is
accepted with probability >= (1 - TV) / (1 + TV), where the best possible is 1 - TV; chosen drafts (n-grams, trees of
likely tokens) lose nothing.

The universal coupling by shared noise: arXiv 2506.00413.
"""

from collections.abc import Sequence

from stretto.core.card import Can, Card, Exactness
from stretto.core.drafter import Draft, Verdict
from stretto.core.judge import Head, Judge
from stretto.core.sampling import Noise
from stretto.engine.judges._shared import walk_picks


class Coupled(Judge):
    """The default at temperature > 0; at temperature 0 its picks are argmaxes."""

    can = Can.CHAIN | Can.TREE | Can.SAMPLED
    head: Head = "picks"

    def judge(self, draft: Draft, rows: Sequence[int], position: int, noise: Noise) -> Verdict:
        return walk_picks(draft, rows)


CARD = Card(
    name="coupled",
    make=Coupled,
    idea="keep the drafts that the same seed draws without them",
    paper="2506.00413",
    can=Coupled.can,
    cost="O(N)",
    exactness=Exactness.LOSSLESS,
)
