"""Prompts take what is left of a time between tokens: those that decode hear from their text at that pace.

While others decode, a step reads as much of prompts as the model of step times (`core/step_time.py`) says that `tbt`
seconds allow, at least `TILE` tokens; alone, prompts take the whole step. A long prompt is read in pieces that become
shorter as it grows. Source: arXiv 2403.02310 (a budget for each step), 2409.17264 (pieces that adapt).
"""

import math
from collections.abc import Sequence

from stretto.core.card import Can, Card
from stretto.core.errors import UserError
from stretto.core.policy import ChunkPolicy, Job, Record
from stretto.core.step_time import StepTime
from stretto.engine.policies.chunk._shared import aligned

TILE = 16  # tokens


class Paced(ChunkPolicy):
    """tbt: seconds between two tokens of a text, wanted at most."""

    def __init__(self, tbt: float = 0.05) -> None:
        if not 0 < tbt < math.inf:
            raise UserError(f"paced: tbt is {tbt}", why="it is a finite number of seconds above 0")
        self._tbt, self._time = tbt, StepTime()
        self._rows = self._contexts = self._given = 0

    def begin(self, running: Sequence[Job]) -> None:
        decoding = [job for job in running if job.need == 1]
        self._rows, self._contexts, self._given = len(decoding), sum(job.held for job in decoding), 0

    def rows(self, job: Job, budget: int) -> int:
        if job.need > 1 and self._rows and self._time.is_known:
            budget = min(budget, self._allowed(job))
        rows = aligned(job, budget)
        self._given += rows if job.need > 1 else 0
        return rows

    def learn(self, record: Record) -> None:
        n = record.num_steps
        self._time.learn(record.num_rows, record.contexts, record.pairs, record.seconds / n)

    def _allowed(self, job: Job) -> int:
        """Prompt tokens in this step: the first prompt gets a tile in any case, others what is left."""
        most = self._time.rows_within(self._tbt, rows=self._rows, contexts=self._contexts, before=job.held)
        tiles = max(1, int(min(most, 1e6)) // TILE)
        return max(0, tiles * TILE - self._given)


CARD = Card(
    name="paced",
    make=Paced,
    idea="as much of prompts as a wanted time between tokens leaves",
    paper="2403.02310",
    can=Can(0),
    cost="O(1)",
)
