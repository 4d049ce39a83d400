"""Prompts take what the budget leaves, in pieces that end at multiples of 64 tokens.

Recurrent kernels anchor their chunks at such multiples: a prompt in pieces then has the bits of a prompt in one.
"""

from stretto.core.card import Can, Card
from stretto.core.policy import ChunkPolicy, Job
from stretto.engine.policies.chunk._shared import aligned


class Aligned(ChunkPolicy):
    """See the module docstring. A budget that reaches no multiple is used all the same."""

    def rows(self, job: Job, budget: int) -> int:
        return aligned(job, budget)


CARD = Card(
    name="aligned",
    make=Aligned,
    idea="as much of a prompt as the budget leaves, in pieces that end where chunks of kernels do",
    paper="2403.02310",
    can=Can(0),
    cost="O(1)",
)
