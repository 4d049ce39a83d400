"""What orders of batches share."""

from collections.abc import Sequence

from stretto.core.policy import Job

_TOKENS = 64


def branch_of(tokens: Sequence[int]) -> tuple[int, ...]:
    """Texts with the same first tokens run together."""
    return tuple(tokens[:_TOKENS])


def beginning(job: Job) -> tuple[int, ...]:
    """The branch of its prompt."""
    return branch_of((job.tokens or ())[: job.prompt])
