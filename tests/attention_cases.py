"""Layers and caches that tests of native attention share."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from native import LEVELS, int32, team
from torch import Tensor

from stretto.core.pages import Locations
from stretto.core.seqs import Seqs
from stretto.core.state import PageRef
from stretto.kernels.attention import attention
from stretto.kernels.native.tape import ALL_ROWS, Tape

ROOM, CONTEXT, PAGE = 800, 1024, 16
Rows = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Layer:
    """One attention operation: H query heads of G key heads, of sizes K and V."""

    H: int
    G: int
    K: int
    V: int
    dtype: torch.dtype = torch.bfloat16
    window: int | None = None

    def rows(self, n: int) -> Rows:
        return torch.randn(n, self.H, self.K), torch.randn(n, self.G, self.K), torch.randn(n, self.G, self.V)


LAYERS = {
    "grouped": Layer(9, 3, 64, 64),
    "grouped fp32": Layer(4, 2, 32, 32, torch.float32),
    "multi-query": Layer(17, 1, 48, 80),
    "multi-head": Layer(3, 3, 256, 256, torch.float32),
    "odd sizes": Layer(4, 2, 37, 70),
    "odd sizes fp32": Layer(2, 1, 5, 3, torch.float32),
    "window": Layer(6, 2, 64, 32, window=300),
    "short window": Layer(2, 2, 32, 48, window=5),
    "one group of many": Layer(100, 1, 16, 16),
}


class Cache:
    """Pages of one layer in random order for `num_seqs` sequences; what was never written is NaN.

    positions: of the keys that it holds, per sequence, where its lists are not whole contexts in order.
    """

    def __init__(self, layer: Layer, num_seqs: int) -> None:
        self.layer, blocks = layer, CONTEXT // PAGE
        self.positions: list[Tensor] | None = None
        numbers = torch.randperm(num_seqs * blocks) + 1
        self.table = numbers.view(num_seqs, blocks)
        pages = num_seqs * blocks + 1
        keys = torch.full((pages, layer.G, layer.K, PAGE), torch.nan, dtype=layer.dtype).movedim(-1, 1)
        self.pages = [keys, torch.full((pages, PAGE, layer.G, layer.V), torch.nan, dtype=layer.dtype)]

    def slots(self, b: int, first: int, last: int) -> Tensor:
        where = torch.arange(first, last)
        return self.table[b, where // PAGE] * PAGE + where % PAGE

    def held(self, seqs: Seqs) -> list[int]:
        return list(seqs.contexts) if self.positions is None else [len(x) for x in self.positions]

    def slot_mapping(self, seqs: Seqs) -> Tensor:
        return torch.cat(
            [self.slots(b, c, c + n) for b, (c, n) in enumerate(zip(self.held(seqs), seqs.lens, strict=True))]
        )

    def rearranged(self, seqs: Seqs, order: Sequence[Tensor]) -> "Cache":
        """A cache that holds of every context the tokens that `order` names, in that order."""
        other = Cache(self.layer, len(order))
        other.positions = list(order)
        for b, kept in enumerate(order):
            source, target = (self.slots(b, 0, seqs.contexts[b])[kept], other.slots(b, 0, len(kept)))
            rows = [pages[source // PAGE, source % PAGE] for pages in self.pages]
            other.write(target, rows[0], rows[1])
        return other

    def write(self, slots: Tensor, k: Tensor, v: Tensor) -> None:
        for pages, rows in zip(self.pages, (k, v), strict=True):
            pages[slots // PAGE, slots % PAGE] = rows.to(pages.dtype)

    def filled(self, seqs: Seqs) -> "Cache":
        """Random contexts for all sequences."""
        for b, context in enumerate(seqs.contexts):
            self.write(self.slots(b, 0, context), *self.layer.rows(context)[1:])
        return self

    def refs(self, seqs: Seqs, dtype: torch.dtype | None = None) -> tuple[PageRef, PageRef]:
        """dtype: copies of it, zero where nothing was written; default, the pages themselves."""
        where = Locations(self.table, self.slot_mapping(seqs), key_positions=self.positions)
        k, v = self.pages if dtype is None else (x.to(dtype).nan_to_num() for x in self.pages)
        return PageRef(k, where), PageRef(v, where)

    def copy(self) -> "Cache":
        other = Cache.__new__(Cache)
        other.layer, other.table, other.pages = self.layer, self.table, [x.clone() for x in self.pages]
        other.positions = self.positions
        return other


def attend(
    cache: Cache, seqs: Seqs, rows: Rows, *, level: str = LEVELS[0], threads: int = 2, coarse: bool = False
) -> tuple[Tensor, Tensor]:
    """(o, lse) of the native kernel, from poisoned buffers; this call's keys and values are in `cache` afterwards.

    coarse: sequences that are not in step form are prompts, and prompts are coarse.
    """
    layer, n = cache.layer, seqs.num_rows
    tape = Tape(team(level, threads), max_rows=ROOM, max_out=1, context=CONTEXT, coarse_prompts=coarse)
    widths = [x[0].numel() for x in rows]
    held, kv = tape.empty(ALL_ROWS, sum(widths)), cache.refs(seqs)
    with tape.recording():
        parts = held.split_with_sizes(widths, 1)
        q, k, v = (part.unflatten(1, x.shape[1:]) for part, x in zip(parts, rows, strict=True))
        o, lse = attention(q, k, v, seqs=Seqs.of([]), kv=kv, window=layer.window, impl="native")
    for buffer in (held, o, lse):
        ctypes.memset(buffer.data_ptr(), 0xFF, buffer.nbytes)  # NaN
    held[:n] = torch.cat([x.flatten(1) for x in rows], 1)
    slots, table, step = cache.slot_mapping(seqs), cache.table.to(torch.int32), tape.step
    group, held = tape.library.struct("PageGroup")(), int32(cache.held(seqs))
    group.block_table, group.block_width, group.slot_mapping = table.data_ptr(), table.shape[1], slots.data_ptr()
    group.num_keys = ctypes.addressof(held)
    if cache.positions is not None:
        padded = torch.full((len(table), table.shape[1] * PAGE), 2**30, dtype=torch.int32)
        for own, positions in zip(padded, cache.positions, strict=True):
            own[: len(positions)] = positions
        group.key_positions = padded.data_ptr()
    parents = [p for b in range(seqs.num_seqs) for p in seqs.tree(b).parents]
    arrays = {
        "starts": int32(seqs.starts),
        "contexts": int32(seqs.contexts),
        "parents": int32(parents),
        "positions": int32(seqs.positions.tolist()),
    }
    step.num_rows, step.num_seqs, step.num_step_seqs = n, seqs.num_seqs, seqs.num_step
    step.groups, step.num_groups = ctypes.addressof(group), 1
    for name, values in arrays.items():
        setattr(step, name, ctypes.addressof(values))
    tape.run()
    assert o[n:].isnan().all() and lse[n:].isnan().all(), "rows that are not there were written"
    return o[:n].clone(), lse[:n].clone()


def decode(cache: Cache, context: int, rows: Rows, **how: int) -> tuple[Tensor, Tensor]:
    """One sequence, token by token."""
    parts = []
    for i in range(len(rows[0])):
        seqs = Seqs.of([1], [context + i], num_step=1)
        parts.append(attend(cache, seqs, tuple(x[i : i + 1] for x in rows), **how))  # type: ignore[arg-type]
    return torch.cat([o for o, _ in parts]), torch.cat([lse for _, lse in parts])


def equal(got: Sequence[Tensor], want: Sequence[Tensor]) -> bool:
    return all(torch.equal(x.view(torch.int32), y.view(torch.int32)) for x, y in zip(got, want, strict=True))
