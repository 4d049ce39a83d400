"""`Seqs`: which rows of a packed call belong to which sequence, and where they stand in it.

Activations are packed rows `x_TD`: sequence after sequence, no padding. A serving step orders its sequences decode
and verify first (`num_step` of them, in step form), then prefill (chunked form). Training data are packed
sequences with `num_step = 0` and no context.

A sequence's rows are definite (prompt tokens, the pending token) followed by `num_draft` provisional rows: nodes of a
draft tree. `trees[b]` says which row, inside sequence b, every row continues (-1: the context); `None` says that the
rows are a chain.

Native kernels read the integers, so torch is imported by whoever asks for tensors.

*Tags* are integers that parts of a model may ask for by name (`Seqs.tag`): one for each row (the adapter or the tenant
of its request), or one for all rows of a call (which of its layers a shared block computes).
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, TypeVar

from stretto.core.tree import MAX_TREE_ROWS, Tree

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_V = TypeVar("_V")
Tags = Mapping[str, int | tuple[int, ...]]
LORA = "lora"
"""The tag with the number of a row's adapter, 0 = none (`kernels/lora`)."""


@dataclass(frozen=True)
class Seqs:
    """Immutable description of packed rows. Tensors are derived once, on first use, and shared by all layers."""

    lens: tuple[int, ...]  # rows per sequence in this call; 0 is allowed
    contexts: tuple[int, ...]  # tokens of each sequence that its state already holds
    num_draft: tuple[int, ...]  # trailing provisional rows per sequence
    trees: tuple[Tree | None, ...]  # see the module docstring
    num_step: int = 0  # leading sequences that run in step form
    device: "torch.device | str" = "cpu"
    tags: Tags = field(default_factory=dict, hash=False)  # see the module docstring
    _memo: dict[Hashable, object] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(
        lens: Sequence[int],
        contexts: Sequence[int] | None = None,
        *,
        num_draft: Sequence[int] | None = None,
        parents: Sequence[Tree | Sequence[int] | None] | None = None,
        num_step: int = 0,
        device: "torch.device | str" = "cpu",
        tags: Mapping[str, int | Sequence[int]] | None = None,
    ) -> "Seqs":
        """Packed sequences of `lens` rows after `contexts` tokens (default: none).

        parents: per sequence its tree, or the parents of its rows; None = a chain.
        """
        n = len(lens)
        trees = (None,) * n if parents is None else tuple(map(_tree, parents))
        return Seqs(
            lens=tuple(lens),
            contexts=tuple(contexts) if contexts is not None else (0,) * n,
            num_draft=tuple(num_draft) if num_draft is not None else (0,) * n,
            trees=trees,
            num_step=num_step,
            device=device,
            tags={name: value if isinstance(value, int) else tuple(value) for name, value in (tags or {}).items()},
        )

    def __post_init__(self) -> None:
        n = len(self.lens)
        assert len(self.contexts) == len(self.num_draft) == len(self.trees) == n and 0 <= self.num_step <= n
        for b, (rows, drafts, tree) in enumerate(zip(self.lens, self.num_draft, self.trees, strict=True)):
            assert 0 <= drafts <= rows
            assert not drafts or b < self.num_step, "drafts run in step form"
            if tree is not None:
                assert len(tree) == rows <= MAX_TREE_ROWS
                assert tree.truncate(rows - drafts).is_chain, "definite rows are a chain"
        for name, tag in self.tags.items():
            assert isinstance(tag, int) or len(tag) == sum(self.lens), f"tag {name!r}: one number for each row"

    @property
    def num_seqs(self) -> int:
        return len(self.lens)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First packed row of every sequence, and the total at the end (`cu_seqlens` as Python integers)."""
        return (0, *accumulate(self.lens))

    @property
    def num_rows(self) -> int:
        return self.starts[-1]

    @property
    def num_step_rows(self) -> int:
        """Rows that run in step form; they come first."""
        return self.starts[self.num_step]

    @property
    def has_drafts(self) -> bool:
        return any(self.num_draft)

    @property
    def definite(self) -> tuple[int, ...]:
        """Rows per sequence that are certainly kept."""
        return tuple(n - d for n, d in zip(self.lens, self.num_draft, strict=True))

    def slice(self, first: int, last: int) -> "Seqs":
        """Sequences [first, last) on their own; memoised."""
        return self.memo(("slice", first, last), lambda: self._slice(first, last))

    def _slice(self, first: int, last: int) -> "Seqs":
        num_step = max(0, min(self.num_step, last) - first)
        cut = slice(first, last)
        of_cut = self.lens[cut], self.contexts[cut], self.num_draft[cut], self.trees[cut]
        return Seqs(*of_cut, num_step, self.device, _of_rows(self.tags, range(self.starts[first], self.starts[last])))

    @property
    def step_part(self) -> "Seqs":
        """The leading sequences, which run in step form."""
        return self.slice(0, self.num_step)

    @property
    def chunk_part(self) -> "Seqs":
        """The other sequences, which run in chunked form; their rows start at `num_step_rows`."""
        return self.slice(self.num_step, self.num_seqs)

    def select(self, rows: Sequence[int]) -> "Seqs":
        """Some packed rows, ascending, by sequence: for parts that look at every row by itself."""
        assert all(a < b for a, b in pairwise(rows)), "rows come in order"
        at = [bisect_left(rows, start) for start in self.starts]
        lens = [b - a for a, b in pairwise(at)]
        return Seqs.of(lens, num_step=self.num_step, device=self.device, tags=_of_rows(self.tags, rows))

    def tree(self, b: int) -> Tree:
        """What every row of sequence b continues, also for chains."""
        return self.trees[b] or Tree.chain(self.lens[b])

    def memo(self, key: Hashable, make: Callable[[], _V]) -> _V:
        """A value derived from this description that all layers share (rotary tables, gather indices)."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]  # type: ignore[return-value]

    def tag(self, name: str) -> "int | Tensor | None":
        """The number that all rows have, or those of the rows [T] int64; None if nobody gave any."""
        value = self.tags.get(name)
        return self.memo(("tag", name), lambda: self._tensor(value)) if isinstance(value, tuple) else value

    def tagged(self, name: str, value: int) -> "Seqs":
        """The same rows, all of them with one more number; memoised."""
        return self.memo(("tagged", name, value), lambda: replace(self, tags={**self.tags, name: value}, _memo={}))

    # -- tensors, derived once -------------------------------------------------------------------------------------

    def _tensor(self, values: Sequence[int] | Sequence[list[int]]) -> "Tensor":
        import torch

        return torch.tensor(values, dtype=torch.int64, device=self.device)

    @cached_property
    def positions(self) -> "Tensor":
        """[T] int64: absolute position, context + depth (siblings of a tree share one)."""
        found: list[int] = []
        for n, c, t in zip(self.lens, self.contexts, self.trees, strict=True):
            found += range(c, c + n) if t is None else [c + d for d in t.depths]
        return self._tensor(found)

    @cached_property
    def ancestors(self) -> "Tensor":
        """[T] int64: bit j of row i is set iff row j of the same sequence is i or an ancestor of i.

        Defined for sequences of at most 64 rows; longer ones (always chains) get 0.
        """
        bits: list[int] = []
        for b, n in enumerate(self.lens):
            bits += self.tree(b).ancestors if n <= MAX_TREE_ROWS else [0] * n
        return self._tensor([v - (1 << 64) if v >= 1 << 63 else v for v in bits])


@dataclass(frozen=True)
class Accepted:
    """The provisional rows that a step keeps: one root path for each sequence that keeps any.

    seqs: those sequences as chains in step form, without provisional rows, after their definite rows.
    rows: [n] int64, packed row numbers of the verified call, in path order, sequence after sequence.
    which: [B'] int64, sequence numbers in the verified call.
    """

    seqs: Seqs
    rows: "Tensor"
    which: "Tensor"

    @staticmethod
    def of(seqs: Seqs, paths: Sequence[Sequence[int]]) -> "Accepted | None":
        """`paths[b]`: accepted rows of sequence b (row numbers inside it, topological); None if there are none."""
        check_paths(seqs, paths)
        kept = [b for b, path in enumerate(paths) if path]
        if not kept:
            return None
        return Accepted(
            seqs=Seqs.of(
                [len(paths[b]) for b in kept],
                [seqs.contexts[b] + seqs.definite[b] for b in kept],
                num_step=len(kept),
                device=seqs.device,
            ),
            rows=seqs._tensor([seqs.starts[b] + row for b in kept for row in paths[b]]),
            which=seqs._tensor(kept),
        )


def check_paths(seqs: Seqs, paths: Sequence[Sequence[int]]) -> None:
    """Assert that `paths[b]` is a path of provisional rows of sequence b, from the pending row on."""
    for b, path in enumerate(paths):
        parents, last = seqs.tree(b).parents, seqs.definite[b] - 1
        for row in path:
            assert row > seqs.definite[b] - 1 and parents[row] == last, "an accepted path starts at the pending row"
            last = row


def _tree(rows: Tree | Sequence[int] | None) -> Tree | None:
    return rows if rows is None or isinstance(rows, Tree) else Tree(tuple(rows))


def _of_rows(tags: Tags, rows: Sequence[int]) -> Tags:
    """The tags of some rows."""
    return {name: tag if isinstance(tag, int) else tuple(tag[row] for row in rows) for name, tag in tags.items()}
