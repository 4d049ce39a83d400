"""What a forward pass says: scores of the rows that the head was asked for, hidden states of all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Scores:
    """The logits of R rows.

    logits: computes or finds [R, W] fp32 or wider; asked once, and only if somebody needs tensors. top, argmax: per
    row, if they are known already, its largest logit (NaN if there is one) and the lowest id that has it. rows: where
    native threads find the logits (`kernels.sampling.native.LogitRows`), None if they are tensors.
    """

    def __init__(
        self,
        logits: "Callable[[], Tensor]",
        top: Sequence[float] | None = None,
        argmax: Sequence[int] | None = None,
        rows: Any = None,
    ) -> None:
        self._logits, self.top, self.argmax, self.rows = logits, top, argmax, rows

    def select(self, order: Sequence[int]) -> "Scores":
        """Those of these rows, in this order."""
        return Scores(
            lambda: self.logits[list(order)],
            None if self.top is None else [self.top[i] for i in order],
            None if self.argmax is None else [self.argmax[i] for i in order],
            None if self.rows is None else self.rows.select(order),
        )

    @cached_property
    def logits(self) -> "Tensor":
        """[R, W]."""
        return self._logits()


def _nothing(row: int) -> Sequence[float]:
    raise AssertionError("this model was not asked for its hidden states")


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a forward pass gives, valid until the next one. features: per layer that was asked for, [T, D]. hidden: of a
    wanted row, by its number among them, the hidden state [D] that the head was given."""

    scores: Scores
    features: "tuple[Tensor, ...]" = ()
    hidden: Callable[[int], Sequence[float]] = _nothing

    def select(self, order: Sequence[int]) -> "Outputs":
        """Of these wanted rows, in this order."""
        return replace(self, scores=self.scores.select(order), hidden=lambda row: self.hidden(order[row]))
