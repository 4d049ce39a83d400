"""A text becomes as long as it may."""

from stretto.core.card import Can, Card
from stretto.core.policy import Job, LengthPolicy


class Limit(LengthPolicy):
    """See the module docstring."""

    def expect(self, job: Job) -> int:
        return job.limit


CARD = Card(
    name="limit",
    make=Limit,
    idea="a text becomes as long as it may",
    paper="none",
    can=Can(0),
    cost="O(1)",
)
