"""`Scores`: what the head says about the rows of a step."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Scores:
    """The logits of R rows.

    logits: computes or finds [R, W] fp32 or wider; asked once, and only if somebody needs them. top, argmax: per row,
    if they are known already, its largest logit (NaN if there is one) and the lowest id that has it. threads: native
    ones, if they shall draw tokens (`kernels.native.library.Team`).
    """

    def __init__(
        self,
        logits: "Callable[[], Tensor]",
        top: Sequence[float] | None = None,
        argmax: Sequence[int] | None = None,
        threads: Any = None,
    ) -> None:
        self._logits, self.top, self.argmax, self.threads = logits, top, argmax, threads

    @cached_property
    def logits(self) -> "Tensor":
        """[R, W]."""
        return self._logits()
