"""How long steps take here and now: a measured staircase, corrected by every step.

    seconds(kind, rows) = staircase(rows) * exp(speed + correction[kind])

`speed` is what all steps share (a machine that is busy, a context that grows), `correction` what is peculiar to one
kind: plain steps that ran as one or alone, by their sequences, and steps that asked for drafts, by their rows. The
logarithm of observed / expected moves both, limited to a factor of three, so that one step during which the machine
did something else is no revolution. Corrections of steps with drafts fade while there are none; a number of rows that
was not tried yet has the correction of the next smaller one that was.
"""

import math
from collections.abc import Mapping

from stretto.core.costs import Staircase

_GUESS = Staircase({1: 1.0, 11: 2.0})  # where nothing was measured: a row more costs a tenth
_SPEED, _SPEED_OF_DRAFTS = 0.2, 0.05  # share of a deviation that moves the speed, at least
_CORRECTION = 0.05
_FADE = 0.998
_MOST = math.log(3.0)

_PLAIN, _MANY = ("alone", "few", "many"), 4  # kinds of plain steps: by how many run as one
Kind = tuple[str, int]


class Pace:
    """What it expects of steps before it has seen a plain one is not worth much."""

    def __init__(self) -> None:
        self._stairs, self._speed = _GUESS, 0.0
        self._steps = 0  # plain ones that were observed
        self._is_known = False
        self._corrections: dict[Kind, tuple[float, int]] = {}  # and how many steps it is from
        self._most_rows = 1
        self._is_measured = False

    def know(self, seconds: Mapping[int, float]) -> None:
        """Seconds of a step by its rows."""
        self._stairs, self._is_known, self._is_measured = Staircase(seconds), True, True

    @property
    def most_rows(self) -> int | None:
        """Rows that a step may have: twice those of any step before it where nothing was measured; None = any."""
        return None if self._is_measured else 2 * self._most_rows

    @property
    def has_seen_plain(self) -> bool:
        """Whether there was a plain step."""
        return self._steps > 0

    def plain(self, num_seqs: int) -> float:
        """Seconds of a plain step, among several that run as one where that was seen to be shorter. Of a number of
        sequences that was not seen yet the nearest one is taken that was."""
        seen = {n for name, n in self._corrections if name in _PLAIN}
        near = min(seen, key=lambda n: abs(n - num_seqs), default=num_seqs)
        kinds = [(name, near) for name in _PLAIN if (name, near) in self._corrections] or [("alone", near)]
        return min(self._expected(kind, num_seqs) for kind in kinds)

    def drafting(self, num_rows: int) -> float:
        """Seconds of a step that asks for drafts, with so many rows in all."""
        return self._expected(_drafts(num_rows), num_rows)

    def overhead(self, num_seqs: int) -> float | None:
        """How much longer a plain step takes alone than among several, as a share; None = not seen."""
        kinds = ("alone", num_seqs), ("many", num_seqs)
        if any(kind not in self._corrections for kind in kinds):
            return None
        alone, many = (self._corrections[kind][0] for kind in kinds)
        return math.exp(alone - many) - 1

    def observe_plain(self, num_seqs: int, num_steps: int, seconds: float) -> None:
        """seconds: of each step."""
        kind = _PLAIN[0 if num_steps == 1 else 1 if num_steps < _MANY else 2], num_seqs
        if not self._is_known:
            self._speed = math.log(max(seconds, 1e-9) / self._stairs.seconds(num_seqs))
            self._is_known = True
        self._observe(kind, num_seqs, seconds, max(_SPEED, 0.8 / (1 + self._steps)))
        self._steps, self._most_rows = self._steps + 1, max(self._most_rows, num_seqs)
        for one, (correction, count) in self._corrections.items():
            if one[0] == "drafts":
                self._corrections[one] = correction * _FADE, count

    def observe_drafting(self, num_rows: int, seconds: float) -> None:
        """num_rows: of the step in all."""
        self._most_rows = max(self._most_rows, num_rows)
        self._observe(_drafts(num_rows), num_rows, seconds, _SPEED_OF_DRAFTS)

    def _expected(self, kind: Kind, num_rows: int) -> float:
        return self._stairs.seconds(num_rows) * math.exp(self._speed + self._correction(kind)[0])

    def _correction(self, kind: Kind) -> tuple[float, int]:
        correction, count = self._corrections.get(kind, (0.0, 0))
        if kind[0] == "drafts" and not count:
            tried = (n for name, n in self._corrections if name == "drafts" and n < kind[1])
            correction = self._corrections.get(("drafts", max(tried, default=0)), (0.0, 0))[0]
        return correction, count

    def _observe(self, kind: Kind, num_rows: int, seconds: float, share: float) -> None:
        off = math.log(max(seconds, 1e-9) / self._expected(kind, num_rows))  # a clock may stand still
        off = max(-_MOST, min(_MOST, off))
        correction, count = self._correction(kind)
        self._speed += share * off
        first = 0.7 if kind[0] == "drafts" else 0.2
        own = min(1 - share, max(_CORRECTION, first / (1 + count)))
        self._corrections[kind] = correction + own * off, count + 1


def _drafts(num_rows: int) -> Kind:
    """Rows 1, 2, 3-4, 5-8, ... are corrected together."""
    return "drafts", (num_rows - 1).bit_length()
