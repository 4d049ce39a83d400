"""What a layer carries between calls: declared by `StateSpec`, handed to the kernels as `Paged` and `Slot`.

Two kinds of storage exist. *Paged* state grows with the sequence (keys, values, convolution inputs): rows are
appended, provisional ones included, and rolled back by position. *Slot* state has a fixed size (recurrent matrices,
filter tails): a call leaves the state after the definite rows, remembers the few inputs of the provisional ones, and
`commit` replays the accepted path with the kernel that verified it.

Serving hands out `PageRef` and `SlotRef`, views into the pools of `cache/`; kernels may use their fields directly.
`TensorCache` is the same interface over plain tensors, functional and differentiable: law tests, training with a
carried state, snapshots.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from stretto.core.page_format import PageFormat, Plain, page_format
from stretto.core.pages import Locations, PageGroup
from stretto.core.seqs import Accepted, Seqs


@dataclass(frozen=True, kw_only=True, slots=True)
class StateSpec:
    """One tensor that one sequence must carry through one layer.

    shape: per token (kind `paged`) or per sequence (kind `slot`).
    dtype: of a slot, None = that of the activations.
    codec: of a paged state, the name of its format (see `page_format`), None = that of the engine.
    kind: `paged` states lose rejected drafts by position, `slot` states by replaying what was accepted.
    lanes: native kernels want it lane by lane (paged): for each element, the tokens of a page side by side.
    group: which tokens stay (paged), as `PageGroup.parse` reads it. The states of a layer that are read together share
    one. Raises UserError for any other group.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    kind: Literal["paged", "slot"]
    codec: str | None = None
    lanes: bool = False
    group: str = "all"

    def __post_init__(self) -> None:
        PageGroup.parse(self.group)
        assert self.dtype is None if self.kind == "paged" else self.codec is None

    def format(self, kv: PageFormat) -> PageFormat:
        """Of a paged state in an engine whose format is `kv`."""
        return kv if self.codec is None else page_format(self.codec)

    def nbytes(self, default: torch.dtype | PageFormat) -> int:
        """Bytes per token (paged) or per sequence (slot). default: the format of the engine (a dtype: plain numbers) or
        the dtype of the activations."""
        if self.kind == "paged":
            return self.format(Plain(default) if isinstance(default, torch.dtype) else default).nbytes(self.shape)
        assert isinstance(default, torch.dtype)
        return int(torch.Size(self.shape).numel()) * (self.dtype or default).itemsize


Replay = Callable[["Slot", Seqs, Mapping[str, Tensor]], None]
"""`replay(slot, seqs, rows)` advances `slot` over chains of recorded rows; it is the kernel's own step form."""


class Paged(ABC):
    """One paged state of one layer during one call."""

    @abstractmethod
    def append(self, rows: Tensor, seqs: Seqs) -> None:
        """Store this call's rows [T, *shape] after the context, provisional ones in row order."""

    @abstractmethod
    def read(self, b: int, seqs: Seqs) -> Tensor:
        """[held + rows, *shape]: the list of sequence b, in storage order (call after `append`). What no row may see
        any more is finite."""

    @abstractmethod
    def read_padded(self, seqs: Seqs, multiple: int = 1) -> Tensor:
        """[B, L, *shape] for the leading `seqs.num_seqs` sequences, L = max(held + rows) rounded up to `multiple`.

        The padding is finite.
        """

    def key_positions(self, b: int) -> Tensor | None:
        """[held] int64: the positions of what sequence b held before this call. None: it holds its whole context, in
        order."""
        return None


class Slot(ABC):
    """One fixed-size state of one layer during one call, for all its sequences."""

    def __init__(self) -> None:
        self._tape: tuple[Replay, Mapping[str, Tensor]] | None = None

    @abstractmethod
    def read(self) -> Tensor:
        """[B, *shape]: the entry states."""

    @abstractmethod
    def write(self, states: Tensor) -> None:
        """Keep [B, *shape] as the states after the definite rows."""

    @abstractmethod
    def at(self, which: Tensor) -> "Slot":
        """The slot of some of the sequences, reading what `write` left."""

    def record(self, replay: Replay, rows: Mapping[str, Tensor]) -> None:
        """Remember the inputs [T, ...] of this call's rows until `commit`; a kernel calls this if there are drafts."""
        self._tape = (replay, rows)

    def commit(self, accepted: Accepted | None) -> None:
        """Advance over the accepted rows and forget the others."""
        if self._tape is not None and accepted is not None:
            replay, rows = self._tape
            kept = {name: tensor.index_select(0, accepted.rows) for name, tensor in rows.items()}
            replay(self.at(accepted.which), accepted.seqs, kept)
        self._tape = None


LayerCache = Mapping[str, "Paged | Slot"]
"""The states of one layer, by the names that its `state_specs` declare."""
Notes = dict[str, Tensor]
"""What a part of a model says of one call besides its rows, by the names that it declares (`StepPlan.notes`)."""


def prefixed(specs: Sequence[StateSpec], prefix: str) -> tuple[StateSpec, ...]:
    """The states of one part of a layer, under names that no other part has."""
    return tuple(replace(spec, name=f"{prefix}.{spec.name}") for spec in specs)


def states_of(cache: LayerCache | None, prefix: str) -> LayerCache | None:
    """What `prefixed` named, under the names that the part itself declares."""
    if cache is None:
        return None
    return {name.removeprefix(f"{prefix}."): ref for name, ref in cache.items() if name.startswith(f"{prefix}.")}


def paged(cache: LayerCache, name: str) -> Paged:
    """`cache[name]`, known to be paged."""
    ref = cache[name]
    assert isinstance(ref, Paged), f"state {name!r} is not paged"
    return ref


def slot(cache: LayerCache, name: str) -> Slot:
    """`cache[name]`, known to be a slot."""
    ref = cache[name]
    assert isinstance(ref, Slot), f"state {name!r} is not a slot"
    return ref


def padded_length(held: Sequence[int], seqs: Seqs, multiple: int) -> int:
    """Entries of the longest list after this call, rounded up to `multiple`."""
    longest = max(c + n for c, n in zip(held, seqs.lens, strict=True))
    return -(-longest // multiple) * multiple


class PageRef(Paged):
    """Paged state of one layer in a pool.

    pages: the payload [P, page_size, *shape], in memory so or [P, *shape, page_size]. sides: what its format keeps
    beside it, [P, page_size, *shape[:-1]], in the same order. format: default, plain numbers.
    """

    def __init__(
        self, pages: Tensor, where: Locations, format: PageFormat | None = None, sides: Sequence[Tensor] = ()
    ) -> None:
        self.pages, self.where, self.sides = pages, where, tuple(sides)
        self.format = format or Plain(pages.dtype)

    def append(self, rows: Tensor, seqs: Seqs) -> None:
        slots = self.where.slot_mapping
        for part, values in zip((self.pages, *self.sides), self.format.encode(rows), strict=True):
            if part.is_contiguous():
                part.flatten(0, 1).index_copy_(0, slots, values)
            else:  # lane by lane, which no view shows token by token
                part[slots // part.shape[1], slots % part.shape[1]] = values

    def read(self, b: int, seqs: Seqs) -> Tensor:
        length = self._held(seqs)[b] + seqs.lens[b]
        table = self.where.block_table[b, : -(-length // self.pages.shape[1])]
        return self._decoded(lambda part: part.index_select(0, table).flatten(0, 1)[:length])

    def read_padded(self, seqs: Seqs, multiple: int = 1) -> Tensor:
        page, length = self.pages.shape[1], padded_length(self._held(seqs), seqs, multiple)
        blocks = -(-length // page)

        def pages_of_all() -> Tensor:
            table = self.where.block_table[: seqs.num_seqs, :blocks]
            return torch.nn.functional.pad(table, (0, blocks - table.shape[1])).reshape(-1)  # page 0 is zeros

        index = seqs.memo(("padded pages", self.where.group, blocks), pages_of_all)
        whole = (seqs.num_seqs, blocks * page)
        return self._decoded(lambda part: part.index_select(0, index).view(*whole, *part.shape[2:])[:, :length])

    def key_positions(self, b: int) -> Tensor | None:
        return None if self.where.key_positions is None else self.where.key_positions[b]

    def _decoded(self, gather: Callable[[Tensor], Tensor]) -> Tensor:
        return self.format.decode(gather(self.pages), *map(gather, self.sides))

    def _held(self, seqs: Seqs) -> Sequence[int]:
        positions = self.where.key_positions
        return seqs.contexts if positions is None else [len(x) for x in positions[: seqs.num_seqs]]


class SlotRef(Slot):
    """Fixed-size state in a pool: `states` [slots, *shape] of one layer; slot 0 is the zero state, never written.

    source, destination: [B] int64, where each sequence's entry state is and where its next state goes. Sequences may
    share an entry state that none of them overwrites; nobody reads where another sequence writes (threads would race).
    """

    def __init__(self, states: Tensor, source: Tensor, destination: Tensor) -> None:
        super().__init__()
        self.states, self.source, self.destination = states, source, destination

    def read(self) -> Tensor:
        return self.states.index_select(0, self.source)

    def write(self, states: Tensor) -> None:
        self.states.index_copy_(0, self.destination, states.to(self.states.dtype))

    def at(self, which: Tensor) -> "SlotRef":
        destination = self.destination[which]
        return SlotRef(self.states, destination, destination)


class TensorPaged(Paged):
    """Paged state as one tensor per sequence; `append` concatenates, so autograd sees through it."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self._uncommitted: Seqs | None = None

    def append(self, rows: Tensor, seqs: Seqs) -> None:
        assert self._uncommitted is None, "commit the provisional rows first"
        assert tuple(len(t) for t in self.tensors) == seqs.contexts, "contexts differ from what the cache holds"
        self.tensors = [
            torch.cat([held, new.to(held.dtype)])
            for held, new in zip(self.tensors, torch.split(rows, list(seqs.lens)), strict=True)
        ]
        self._uncommitted = seqs if seqs.has_drafts else None

    def read(self, b: int, seqs: Seqs) -> Tensor:
        return self.tensors[b]

    def read_padded(self, seqs: Seqs, multiple: int = 1) -> Tensor:
        held = torch.nn.utils.rnn.pad_sequence(self.tensors[: seqs.num_seqs], batch_first=True)
        missing = padded_length(seqs.contexts, seqs, multiple) - held.shape[1]
        return torch.cat([held, held.new_zeros((len(held), missing, *held.shape[2:]))], 1) if missing else held

    def commit(self, accepted: Accepted | None) -> None:
        """Keep the definite rows and the accepted path."""
        seqs, self._uncommitted = self._uncommitted, None
        if seqs is None:
            return
        paths: dict[int, Tensor] = {}
        if accepted is not None:
            for b, rows in zip(
                accepted.which.tolist(), torch.split(accepted.rows, list(accepted.seqs.lens)), strict=True
            ):
                paths[b] = rows - seqs.starts[b] + seqs.contexts[b]
        for b, tensor in enumerate(self.tensors):
            kept = tensor[: seqs.contexts[b] + seqs.definite[b]]
            self.tensors[b] = torch.cat([kept, tensor[paths[b]]]) if b in paths else kept


class TensorSlot(Slot):
    """Fixed-size state as one tensor [B, *shape]; `write` replaces it, so autograd sees through it."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def read(self) -> Tensor:
        return self.states

    def write(self, states: Tensor) -> None:
        self.states = states.to(self.states.dtype)

    def at(self, which: Tensor) -> "Slot":
        return _TensorSlotPart(self, which)


class _TensorSlotPart(Slot):
    def __init__(self, whole: TensorSlot, which: Tensor) -> None:
        super().__init__()
        self.whole, self.which = whole, which

    def read(self) -> Tensor:
        return self.whole.states.index_select(0, self.which)

    def write(self, states: Tensor) -> None:
        self.whole.states = self.whole.states.index_copy(0, self.which, states.to(self.whole.states.dtype))

    def at(self, which: Tensor) -> "Slot":
        return _TensorSlotPart(self.whole, self.which[which])


class TensorCache(Mapping[str, "Paged | Slot"]):
    """The states of one layer for `num_seqs` sequences as plain tensors, starting from zero: every token stays, in
    `dtype`."""

    def __init__(self, specs: Sequence[StateSpec], num_seqs: int, dtype: torch.dtype, device: str = "cpu") -> None:
        self._refs: dict[str, TensorPaged | TensorSlot] = {}
        for spec in specs:
            if spec.kind == "paged":
                empty = torch.zeros((0, *spec.shape), dtype=dtype, device=device)
                self._refs[spec.name] = TensorPaged([empty] * num_seqs)
            else:
                # States are at least as wide as the activations: fp64 law tests need fp64 states.
                wide = torch.promote_types(spec.dtype or dtype, dtype)
                self._refs[spec.name] = TensorSlot(torch.zeros((num_seqs, *spec.shape), dtype=wide, device=device))

    def __getitem__(self, name: str) -> TensorPaged | TensorSlot:
        return self._refs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def commit(self, accepted: Accepted | None) -> None:
        """Keep the accepted rows of the last call, drop the other provisional ones."""
        for ref in self._refs.values():
            ref.commit(accepted)

    def snapshot(self) -> Self:
        """An independent copy: running on with either leaves the other alone."""
        copy = type(self)((), 0, torch.float32)
        copy._refs = {
            name: TensorPaged(ref.tensors) if isinstance(ref, TensorPaged) else TensorSlot(ref.states)
            for name, ref in self._refs.items()
        }
        return copy

    def tensors(self) -> list[Tensor]:
        """Everything held, in a fixed order, for comparisons."""
        found: list[Tensor] = []
        for ref in self._refs.values():
            found += ref.tensors if isinstance(ref, TensorPaged) else [ref.states]
        return found
