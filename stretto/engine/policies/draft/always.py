"""Draft in every step: what a user gets who names a drafter."""

from collections.abc import Sequence

from stretto.core.card import Can, Card
from stretto.core.policy import DraftPolicy, Job


class Always(DraftPolicy):
    """num_tokens: per request and step."""

    def __init__(self, num_tokens: int = 8) -> None:
        assert num_tokens > 0
        self._num_tokens = num_tokens

    def budgets(self, jobs: Sequence[Job], most: int) -> list[int]:
        return [min(self._num_tokens, most)] * len(jobs)


CARD = Card(
    name="always",
    make=Always,
    idea="the same number of draft tokens in every step",
    paper="2211.17192",
    can=Can(0),
    cost="O(1) per step",
)
