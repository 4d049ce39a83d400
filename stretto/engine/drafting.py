"""Book-keeping of drafts."""

from dataclasses import dataclass, field

from stretto.core.drafter import Draft, Verdict


@dataclass(slots=True)
class DraftStats:
    """Counters since the engine started. accepted_at[d]: drafts whose node at depth d + 1 was accepted."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    emitted: int = 0
    accepted_at: list[int] = field(default_factory=list)

    def add(self, draft: Draft, verdict: Verdict) -> None:
        """Count one round of one request."""
        self.rounds += bool(len(draft))
        self.drafted += len(draft)
        self.accepted += len(verdict.path)
        self.emitted += len(verdict.emitted)
        self.accepted_at += [0] * (len(verdict.path) - len(self.accepted_at))
        for depth in range(len(verdict.path)):
            self.accepted_at[depth] += 1
