"""What turns products of queries and keys into weights: the options that every backend of attention has."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Softmax:
    """scale: of products. window: positions that a row sees, its own included; None = all.

    softcap: scores become softcap * tanh(score / softcap), arXiv 2408.00118; None = they stay. sinks: [H], per query
    head the logit of a key without a value: it takes part in the softmax, and in lse, and adds nothing to the output
    (arXiv 2309.17453; learned: gpt-oss).
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    def scores(self, products: Tensor) -> Tensor:
        """Scaled and capped."""
        scores = products * self.scale
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def with_sinks(self, o: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """(o [T, H, V], lse [T, H]) with the sinks among the keys. Differentiable in o, lse and the sinks."""
        if self.sinks is None:
            return o, lse
        total = torch.logaddexp(lse, self.sinks.to(lse.dtype))
        return (o * (lse - total).exp().unsqueeze(-1)).to(o.dtype), total
