"""`StepTime`: how long a step takes, learned from the steps that ran.

    seconds = a + b rows + g contexts + q pairs

rows: tokens of a step, drafts included; contexts: tokens in the cache of those that decode; pairs: tokens of prompts
times the tokens that each of them sees. Recursive least squares with forgetting, so that it follows a machine whose
speed changes; a coefficient below 0 counts as 0.
"""

import math
from collections.abc import Sequence

_UNITS = (1.0, 100.0, 10_000.0, 100_000.0)  # of the four numbers: all are about 1 then
_FORGETTING = 0.99
_DOUBT = 1e3  # variance of what is not known yet
_FIRST = 32  # steps until a prediction counts
_OUTLIER = 3.0  # times the prediction: a step that took longer was disturbed, and counts as this long


class StepTime:
    """Empty at first."""

    def __init__(self) -> None:
        self._weights = [0.0] * 4
        self._covariance = [[_DOUBT * (i == j) for j in range(4)] for i in range(4)]
        self._num_steps = 0

    @property
    def is_known(self) -> bool:
        """Whether enough steps have been seen."""
        return self._num_steps >= _FIRST

    @property
    def coefficients(self) -> tuple[float, float, float, float]:
        """a, b, g, q in seconds, none below 0."""
        a, b, g, q = (max(0.0, w) / unit for w, unit in zip(self._weights, _UNITS, strict=True))
        return a, b, g, q

    def seconds(self, rows: float, contexts: float, pairs: float) -> float:
        """Of a step of this size."""
        a, b, g, q = self.coefficients
        return a + b * rows + g * contexts + q * pairs

    def learn(self, rows: float, contexts: float, pairs: float, seconds: float) -> None:
        """A step of this size took so long."""
        if self.is_known:
            seconds = min(seconds, _OUTLIER * self.seconds(rows, contexts, pairs))
        x = [value / unit for value, unit in zip((1.0, rows, contexts, pairs), _UNITS, strict=True)]
        projected = [_dot(row, x) for row in self._covariance]
        scale = _FORGETTING + _dot(x, projected)
        gain = [value / scale for value in projected]
        error = seconds - _dot(self._weights, x)
        self._weights = [w + k * error for w, k in zip(self._weights, gain, strict=True)]
        for i in range(4):
            for j in range(4):
                value = (self._covariance[i][j] - gain[i] * projected[j]) / _FORGETTING
                self._covariance[i][j] = min(value, _DOUBT)  # where nothing is learned, doubt has a limit
        self._num_steps += 1

    def rows_within(self, limit: float, *, rows: float, contexts: float, before: float) -> float:
        """How many tokens of a prompt of which `before` tokens have been read fit into a step of `limit` seconds beside
        `rows` others; negative if these take longer already. May be infinite."""
        _, b, _, q = self.coefficients
        left, slope = limit - self.seconds(rows, contexts, 0.0), b + q * before
        if left <= 0:
            return -1.0
        # of the two forms of the root the one that subtracts nothing: q may be almost 0
        divisor = slope + math.sqrt(slope * slope + 2 * q * left)
        return 2 * left / divisor if divisor else float("inf")


def _dot(first: Sequence[float], second: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(first, second, strict=True))
