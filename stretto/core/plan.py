"""`StepPlan`: everything one forward pass needs, as arguments."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass over packed rows. Valid until the next one is packed; nothing else is ambient.

    tokens: [T] int64. out_rows: [R] int64, the rows whose hidden state the head needs.
    caches: one per layer, or None for training (zero entry state, nothing written).
    """

    tokens: Tensor
    seqs: Seqs
    out_rows: Tensor
    caches: Sequence[LayerCache] | None = None

    @staticmethod
    def of(prompts: Sequence[Sequence[int]], caches: Sequence[LayerCache] | None = None) -> "StepPlan":
        """Whole sequences without context, every row wanted: training, scoring and tests."""
        seqs = Seqs.of([len(p) for p in prompts])
        tokens = torch.tensor([t for p in prompts for t in p], dtype=torch.int64)
        return StepPlan(tokens, seqs, torch.arange(len(tokens)), caches)
