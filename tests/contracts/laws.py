"""What the law tests share: running a mixer over a cache, comparing, random draft trees, poisoned memory."""

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from stretto.core.card import CHANNELS, MIXERS, Can, Card
from stretto.core.mixer import Mixer
from stretto.core.seqs import Accepted, Seqs
from stretto.core.state import TensorCache
from stretto.core.tree import MAX_TREE_ROWS

ATOL = 1e-10  # of laws in fp64; the values compared are of order 1


def lively(card: Card, dtype: torch.dtype = torch.float64) -> Any:
    """The card's tiny module with parameters large enough that a mistake in any of them shows."""
    module: nn.Module = card.tiny_module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.to(dtype)


def carrying(can: Can) -> list[Card]:
    """The cards with these abilities of every part that carries a state: all mixers with their variants, and channels
    that look back."""
    looking_back = [card for card in CHANNELS.cards(can) if card.tiny_module().state_specs]
    mixers = [one for card in MIXERS.cards(can) for one in card.with_variants()]
    return [*mixers, *looking_back]


class Run:
    """A mixer, or a channel with a state, and the cache of some sequences: calls it piece by piece and keeps count."""

    def __init__(self, mixer: Mixer, num_seqs: int = 1, dtype: torch.dtype = torch.float64) -> None:
        self.mixer, self.contexts = mixer, [0] * num_seqs
        self.cache = TensorCache(mixer.state_specs, num_seqs, dtype)
        self.seqs: Seqs | None = None

    def __call__(
        self,
        pieces: Sequence[Tensor],
        *,
        num_step: int = 0,
        num_draft: Sequence[int] | None = None,
        parents: Sequence[tuple[int, ...] | None] | None = None,
    ) -> list[Tensor]:
        """One call with `pieces[b]` [rows, D] for each sequence; its outputs, one tensor per sequence."""
        lens = [len(piece) for piece in pieces]
        self.seqs = Seqs.of(lens, self.contexts, num_draft=num_draft, parents=parents, num_step=num_step)
        y = self.mixer(torch.cat(list(pieces)), self.seqs, self.cache)
        self.contexts = [context + rows for context, rows in zip(self.contexts, self.seqs.definite, strict=True)]
        return list(y.split_with_sizes(lens))

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep the accepted rows `paths[b]` of the last call."""
        assert self.seqs is not None
        self.cache.commit(Accepted.of(self.seqs, paths))
        self.contexts = [context + len(path) for context, path in zip(self.contexts, paths, strict=True)]


def run(
    mixer: Mixer, pieces: Sequence[Tensor], *, step: bool = False, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Run]:
    """One sequence, the pieces in order, in step or chunked form: (all outputs, the run with its end states)."""
    state = Run(mixer, dtype=dtype)
    if step:  # a step call has at most as many rows per sequence as a draft tree
        pieces = [part for piece in pieces for part in torch.split(piece, MAX_TREE_ROWS)]
    return torch.cat([state([piece], num_step=int(step))[0] for piece in pieces]), state


def alone(mixer: Mixer, x: Tensor) -> Tensor:
    """One whole sequence without a cache."""
    y: Tensor = mixer(x, Seqs.of([len(x)]))
    return y


def close(found: Tensor | Sequence[Tensor], wanted: Tensor | Sequence[Tensor], atol: float = ATOL) -> None:
    """Equal shapes, and values within `atol` (absolute)."""
    if isinstance(found, Tensor) and isinstance(wanted, Tensor):
        assert found.shape == wanted.shape, f"{tuple(found.shape)} is not {tuple(wanted.shape)}"
        torch.testing.assert_close(found, wanted.to(found.dtype), rtol=0, atol=atol)
        return
    for one, other in zip(found, wanted, strict=True):
        close(one, other, atol)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference as a fraction of the largest wanted value."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max() / wanted.abs().max())


def random_rows(rng: random.Random, definite: int, num_nodes: int, *, tree: bool) -> tuple[int, ...]:
    """The parent table of `definite` rows followed by a random draft of `num_nodes` nodes (a chain if not `tree`)."""
    first = definite - 1
    nodes = [rng.randint(first, row - 1) if tree else row - 1 for row in range(definite, definite + num_nodes)]
    return (*range(-1, first), *nodes)


def path_to(parents: Sequence[int], row: int) -> list[int]:
    """The rows from the context to `row`, itself included."""
    path: list[int] = []
    while row >= 0:
        path.append(row)
        row = parents[row]
    return path[::-1]


def random_path(rng: random.Random, parents: Sequence[int], definite: int) -> list[int]:
    """The provisional rows of a random accepted path, possibly none."""
    last = rng.randint(definite - 1, len(parents) - 1)
    return [row for row in path_to(parents, last) if row >= definite]


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Uninitialised tensors are full of NaN, so an output that was never written cannot pass for zero."""

    def poison(make: Any) -> Any:
        def made(*args: Any, **options: Any) -> Tensor:
            x: Tensor = make(*args, **options)
            return x.fill_(torch.nan) if x.is_floating_point() or x.is_complex() else x

        return made

    with torch.device("cpu"):
        torch.zeros(())  # torch lists its constructors at the first use of such a block, for good: let it see its own
    with ExitStack() as patches, torch.no_grad():
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
            patches.enter_context(patch.object(owner, name, poison(getattr(owner, name))))
        with torch.enable_grad():
            yield
