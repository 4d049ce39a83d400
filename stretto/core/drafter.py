"""The `Drafter` socket: what might come next. Pure Python values; no torch at this border."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed continuation of one request: a chain, or a tree of at most 63 nodes. Empty = no proposal.

    parents: per node the node before it, -1 = the pending token, in topological order; None = a chain.
    probs: the law each token was *really* drawn from, after all processing, [N, W] fp32; None = point mass
    (the token was chosen, not drawn).
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] | None = None
    probs: "Tensor | None" = None

    def __len__(self) -> int:
        return len(self.tokens)

    def truncate(self, num_nodes: int) -> "Draft":
        """The first `num_nodes` nodes (a topological prefix is a tree again)."""
        if num_nodes >= len(self.tokens):
            return self
        return Draft(
            self.tokens[:num_nodes],
            None if self.parents is None else self.parents[:num_nodes],
            None if self.probs is None else self.probs[:num_nodes],
        )

    def chain(self) -> "Draft":
        """The path of first children: what is left of a tree for a model or judge that takes chains only."""
        if self.parents is None:
            return self
        path, last = list[int](), -1
        for node, parent in enumerate(self.parents):
            if parent == last:
                path.append(node)
                last = node
        return Draft(tuple(self.tokens[i] for i in path), None, None if self.probs is None else self.probs[path])


@dataclass(frozen=True, slots=True)
class Ask:
    """One request that wants a proposal: its name since `admit`, and how many nodes the step can verify."""

    rid: int
    max_nodes: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge decided for one request: the accepted nodes, in order, and the tokens to emit.

    emitted: the tokens of the accepted nodes, then one more that no draft gave. (A text that ends inside `emitted`
    is cut there; its request is released in the same step.)
    """

    path: tuple[int, ...]
    emitted: tuple[int, ...]


class Drafter(ABC):
    """Proposes; never edits a sequence. Only `commit` changes state, and `observe` tells what it committed.

    Laws (tests/contracts/test_drafter.py), with an always-right and an always-wrong drafter as controls:
    - greedy output equals plain decoding token for token, for every mixer family and any batch;
    - the same seed gives the same text under the coupled judge;
    - `observe` is called after every step, also without a proposal, so a drafter never loses track;
    - after `release` nothing of the request is kept (unless the filler says so in its card).
    """

    @abstractmethod
    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        """A request starts (or starts again after preemption) with these prompt and output tokens."""

    @abstractmethod
    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        """One draft per ask, possibly empty, with at most `ask.max_nodes` nodes."""

    @abstractmethod
    def observe(self, rid: int, draft: Draft, verdict: Verdict) -> None:
        """The request emitted `verdict.emitted` after this draft (which may have been empty)."""

    @abstractmethod
    def release(self, rid: int) -> None:
        """The request ended or was preempted."""
