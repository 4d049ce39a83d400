"""`StepPlan`: everything one forward pass needs, as arguments."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache


@dataclass(frozen=True)
class StepPlan:
    """One forward pass over packed rows. Valid until the next one is packed; nothing else is ambient.

    token_ids: T of them. wanted: the R rows whose hidden state the head needs, ascending. caches: one per layer, or
    None for training (zero entry state, nothing written). Integers stay Python's until a layer asks for tensors.
    """

    token_ids: Sequence[int]
    seqs: Seqs
    wanted: Sequence[int]
    caches: Sequence[LayerCache] | None = None

    @cached_property
    def tokens(self) -> Tensor:
        """[T] int64."""
        return torch.tensor(self.token_ids, dtype=torch.int64, device=self.seqs.device)

    @cached_property
    def out_rows(self) -> Tensor:
        """[R] int64."""
        return torch.tensor(self.wanted, dtype=torch.int64, device=self.seqs.device)

    @cached_property
    def out_seqs(self) -> Seqs:
        """The R wanted rows by sequence, for layers that look at every row by itself."""
        assert all(a < b for a, b in pairwise(self.wanted)), "wanted rows come in order"
        at = [bisect_left(self.wanted, start) for start in self.seqs.starts]
        return Seqs.of([b - a for a, b in pairwise(at)], num_step=self.seqs.num_step, device=self.seqs.device)

    @staticmethod
    def of(prompts: Sequence[Sequence[int]], caches: Sequence[LayerCache] | None = None) -> "StepPlan":
        """Whole sequences without context, every row wanted: training, scoring and tests."""
        seqs = Seqs.of([len(p) for p in prompts])
        return StepPlan([t for p in prompts for t in p], seqs, range(seqs.num_rows), caches)
