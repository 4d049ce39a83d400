"""`StepPlan`: everything one forward pass needs, as arguments."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from stretto.core.seqs import Seqs

if TYPE_CHECKING:
    from torch import Tensor

    from stretto.core.state import LayerCache, Notes


@dataclass(frozen=True)
class StepPlan:
    """One forward pass over packed rows. Valid until the next one is packed; nothing else is ambient.

    token_ids: T of them. wanted: the R rows whose hidden state the head needs, ascending. caches: one per layer, or
    None for training (zero entry state, nothing written). notes: where the parts of the model write what they declare
    in `Mixer.notes` and `Channel.notes` (router losses, chosen experts), by part (`blocks.3.channel`) and name; None if
    nobody reads them. Integers stay Python's until a layer asks for tensors.
    """

    token_ids: Sequence[int]
    seqs: Seqs
    wanted: Sequence[int]
    caches: "Sequence[LayerCache] | None" = None
    notes: "dict[str, Notes] | None" = None

    @cached_property
    def tokens(self) -> "Tensor":
        """[T] int64."""
        return self._tensor(self.token_ids)

    @cached_property
    def out_rows(self) -> "Tensor":
        """[R] int64."""
        return self._tensor(self.wanted)

    @cached_property
    def out_seqs(self) -> Seqs:
        """The R wanted rows by sequence, for layers that look at every row by itself."""
        return self.seqs.select(self.wanted)

    @staticmethod
    def of(
        prompts: Sequence[Sequence[int]],
        caches: "Sequence[LayerCache] | None" = None,
        notes: "dict[str, Notes] | None" = None,
    ) -> "StepPlan":
        """Whole sequences without context, every row wanted: training, scoring and tests."""
        seqs = Seqs.of([len(p) for p in prompts])
        return StepPlan([t for p in prompts for t in p], seqs, range(seqs.num_rows), caches, notes)

    def _tensor(self, values: Sequence[int]) -> "Tensor":
        import torch

        return torch.tensor(values, dtype=torch.int64, device=self.seqs.device)
