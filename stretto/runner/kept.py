"""`KeptModel`: a model of which only the program is there, and its weights in native tiles. No torch.

It stands where an `LM` does: in `Runner` and `Engine`.
"""

import functools
import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stretto.cache.layout import PoolLayout
from stretto.cache.manager import Memory
from stretto.cache.memory import PoolMemory
from stretto.cache.sizes import size_pools
from stretto.core.card import Can
from stretto.core.costs import TokenCost
from stretto.core.plan import StepPlan
from stretto.core.scores import Outputs
from stretto.core.tree import MAX_TREE_ROWS
from stretto.kernels.native.library import Team
from stretto.kernels.native.program import Program, addresses_of, load, place_buffers
from stretto.runner.replay import Head, Replay
from stretto.runner.sizes import Sizes

if TYPE_CHECKING:
    from stretto.runner.recording import Recorded


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that can run. replay: of a recorded one; compute: the forward pass; scope: around a commit; recorded:
    where this process recorded it."""

    pools: Memory
    replay: Replay | None
    compute: Callable[[StepPlan], Outputs]
    scope: Callable[[], AbstractContextManager[object]] = nullcontext
    recorded: "Recorded | None" = None


@dataclass(frozen=True, slots=True)
class KeptModel:
    """abilities: per part of the model, the number of its layer, its name and what it can do. layout: of its pools.
    max_rows, context: what the program has room for, provisional rows too. tiles: the address of a weight of the
    program by its name; memory: what keeps weights alive."""

    program: Program
    head: Head
    layout: PoolLayout
    abilities: tuple[tuple[int, str, Can], ...]
    token_cost: TokenCost
    max_rows: int
    context: int
    tiles: Callable[[str], int]
    memory: object = None

    @property
    def vocab_size(self) -> int:
        """Tokens that have scores."""
        return self.head.vocab_size

    @property
    def d_model(self) -> int:
        """Numbers of a hidden state."""
        return self.head.d_model

    @property
    def can(self) -> Can:
        """What all of its parts are able to do."""
        return functools.reduce(operator.and_, (can for _, _, can in self.abilities))

    def open(self, sizes: Sizes, threads: Team, *, max_rows: int, vocab_size: int) -> Opened:
        """Ready to run over pools of its own. Raises FitError."""
        context = sizes.context + MAX_TREE_ROWS
        assert max_rows == self.max_rows and context <= self.context and vocab_size == self.vocab_size
        memory = {"context": context, "max_seqs": sizes.max_seqs, "memory_bytes": sizes.memory_bytes}
        found = size_pools(self.layout, max_rows=max_rows, prefix_bytes=sizes.prefix_bytes, **memory)
        pools = PoolMemory(self.layout, found.num_blocks, found.num_slots, threads)

        def given(name: str) -> int:
            kind, _, rest = name.partition(".")
            return self.tiles(name) if kind == "tiles" else pools.address(*map(int, rest.split(".")))

        addresses, held = place_buffers(self.program, given)
        operations = load(self.program, threads, addresses)
        outputs = addresses_of(self.program, addresses)
        replay = Replay(operations, outputs, self.head, memory=(held, pools, self.memory))
        return Opened(pools, replay, replay)
