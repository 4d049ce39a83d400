"""The memory of all sequences: one tensor per state, with a leading layer dimension.

Paged states are `[layers, P, PAGE_SIZE, *shape]`, slot states `[layers, slots, *shape]`, where `layers` counts the
layers that declare the state. A paged state that lies lane by lane is a view of that shape: in memory it is
`[layers, P, *shape, PAGE_SIZE]`. Page 0 and slot 0 stay zero. On the CPU, memory is mapped when it is first written,
so a large pool costs what was used of it; it reads as zeros until then.
"""

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stretto.cache.tables import num_pages
from stretto.core.errors import FitError, UserError
from stretto.core.memory import show_size
from stretto.core.state import PAGE_SIZE, LayerCache, PageRef, SlotRef, StateSpec

LayerSpecs = Sequence[Sequence[StateSpec]]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the states of a call's sequences lie, as integers.

    tables: per sequence, its pages (no sequences where nothing is paged). slot_mapping: per row, page * PAGE_SIZE +
    offset. source, destination: per sequence, the slots of its entry state and of its next state.
    """

    tables: Sequence[Sequence[int]] = ()
    slot_mapping: Sequence[int] = ()
    source: Sequence[int] = ()
    destination: Sequence[int] = ()


class Caches(Sequence[LayerCache]):
    """The states of every layer for one call. A tape reads `placement` only; the views are made if somebody asks."""

    def __init__(self, pools: "Pools", placement: Placement) -> None:
        self.placement = placement
        self._pools, self._layers = pools, list[dict[str, PageRef | SlotRef]]()

    @property
    def layers(self) -> list[dict[str, PageRef | SlotRef]]:
        """One mapping per layer, by the names of its states."""
        if not self._layers:
            self._layers = self._pools.refs(self.placement)
        return self._layers

    @property
    def slots(self) -> list[SlotRef]:
        """The fixed-size states that somebody has looked at, of all layers."""
        return [ref for layer in self._layers for ref in layer.values() if isinstance(ref, SlotRef)]

    def __getitem__(self, layer: Any) -> Any:
        return self.layers[layer]

    def __len__(self) -> int:
        return self._pools.num_layers


class Pools:
    """The tensors behind every `PageRef` and `SlotRef`. Who owns what is the business of `CacheManager`.

    layer_specs: per layer, what its mixer (and channel) declares. kv_dtype: of paged states that name no dtype.
    state_dtype: of the activations; slot states are at least that wide, as in `TensorCache`. lanes: whether states that
    want it lie lane by lane, for native kernels.
    Raises UserError for two states of one name in a layer.
    """

    def __init__(
        self,
        layer_specs: LayerSpecs,
        *,
        num_blocks: int,
        num_slots: int,
        kv_dtype: torch.dtype,
        state_dtype: torch.dtype,
        device: torch.device | str = "cpu",
        lanes: bool = False,
    ) -> None:
        assert num_blocks >= 1 and num_slots >= 1, "page 0 and slot 0 always exist"
        self.num_blocks, self.num_slots = num_blocks, num_slots
        self.device = torch.device(device)
        stored = _stored(layer_specs, kv_dtype, state_dtype)
        self.bytes_per_token, self.bytes_per_sequence = _bytes(stored)
        self._paged: list[Tensor] = []
        self._slots: list[Tensor] = []
        self._layers: list[dict[str, tuple[Tensor, bool]]] = [{} for _ in layer_specs]
        for state, layers in stored.items():
            leading = (num_blocks, PAGE_SIZE) if state.paged else (num_slots,)
            if lanes and state.lanes:
                shape = (len(layers), num_blocks, *state.shape, PAGE_SIZE)
                tensor = _zeros(shape, state.dtype, self.device).movedim(-1, 2)
            else:
                tensor = _zeros((len(layers), *leading, *state.shape), state.dtype, self.device)
            (self._paged if state.paged else self._slots).append(tensor)
            for view, layer in zip(tensor.unbind(0), layers, strict=True):
                self._layers[layer][state.name] = (view, state.paged)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def has_pages(self) -> bool:
        """Whether any layer keeps something per token."""
        return bool(self._paged)

    @property
    def has_slots(self) -> bool:
        """Whether any layer keeps something per sequence."""
        return bool(self._slots)

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [*self._paged, *self._slots]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, touched or not."""
        return self.num_blocks * PAGE_SIZE * self.bytes_per_token + self.num_slots * self.bytes_per_sequence

    def refs(self, placement: Placement) -> list[dict[str, PageRef | SlotRef]]:
        """The states of every layer for one call, with the placement as tensors that all layers share."""
        width = max(map(len, placement.tables), default=0)
        padded = [[*table, *[0] * (width - len(table))] for table in placement.tables]
        tables = self.index(padded).view(len(padded), width)
        mapping, source, destination = map(
            self.index, (placement.slot_mapping, placement.source, placement.destination)
        )
        return [
            {
                name: PageRef(view, tables, mapping) if paged else SlotRef(view, source, destination)
                for name, (view, paged) in layer.items()
            }
            for layer in self._layers
        ]

    def index(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        """int64, where the pools are."""
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def move(self, source_slots: Tensor, destination_slots: Tensor) -> None:
        """Copy token rows in every layer and paged state: [n] int64 each, page * PAGE_SIZE + offset.

        All rows are read before any is written, so the two may overlap; destinations are distinct.
        """
        for tensor in self._paged:
            if tensor.is_contiguous():
                rows = tensor.flatten(1, 2)
                rows.index_copy_(1, destination_slots, rows.index_select(1, source_slots))
            else:  # lane by lane, which no view shows token by token
                source, destination = (
                    (slots // PAGE_SIZE, slots % PAGE_SIZE) for slots in (source_slots, destination_slots)
                )
                tensor[:, *destination] = tensor[:, *source]

    def clear(self, pages: Sequence[int]) -> None:
        """Fill pages with zeros in every layer."""
        if pages:
            index = torch.tensor(pages, dtype=torch.int64, device=self.device)
            for tensor in self._paged:
                tensor.index_fill_(1, index, 0)

    def copy_slot(self, source: int, destination: int) -> None:
        """Copy one sequence's slot states, in every layer."""
        assert destination != 0, "the zero state is never written"
        for tensor in self._slots:
            tensor[:, destination] = tensor[:, source]

    def check(self) -> None:
        """Assert that nobody wrote the null page or the zero state (reads device memory: for tests)."""
        for tensor in (*self._paged, *self._slots):
            assert not tensor[:, 0].any(), "the null page or the zero state was written"


def size_pools(
    layer_specs: LayerSpecs,
    kv_dtype: torch.dtype,
    state_dtype: torch.dtype,
    *,
    context: int,
    max_seqs: int,
    memory_bytes: int,
) -> tuple[int, int]:
    """(num_blocks, num_slots) that fit into `memory_bytes`, at most `max_seqs` sequences of `context` tokens.

    Page 0 and slot 0 are included. `context` counts every row that a sequence may hold, the provisional ones too.
    When memory is short, pages and slots beyond the first sequence share what is left half and half.
    Raises FitError if not even one sequence fits.
    """
    assert context >= 1 and max_seqs >= 1
    per_token, per_seq = _bytes(_stored(layer_specs, kv_dtype, state_dtype))
    per_page = per_token * PAGE_SIZE
    pages = num_pages(context) if per_token else 0
    spare = memory_bytes - (pages + 1) * per_page - 2 * per_seq
    if spare < 0:
        need = sequence_bytes(layer_specs, kv_dtype, state_dtype, context)
        fits = longest_context(layer_specs, kv_dtype, state_dtype, memory_bytes)
        raise _does_not_fit(per_token, per_seq, context, memory_bytes, need, fits)

    def more(budget: int, unit: int, most: int) -> int:
        return min(most, budget // unit) if unit else 0

    most_pages, most_slots = (max_seqs - 1) * pages, max_seqs - 1
    slots = more(spare // 2 if pages else spare, per_seq, most_slots)
    extra = more(spare - slots * per_seq, per_page, most_pages)
    slots = more(spare - extra * per_page, per_seq, most_slots)
    return 1 + pages + extra, (2 + slots if per_seq else 1)


def sequence_bytes(layer_specs: LayerSpecs, kv_dtype: torch.dtype, state_dtype: torch.dtype, context: int) -> int:
    """What a cache for one sequence of `context` tokens takes, null page and zero state included."""
    per_token, per_seq = _bytes(_stored(layer_specs, kv_dtype, state_dtype))
    return (num_pages(context) + 1) * per_token * PAGE_SIZE + 2 * per_seq


def longest_context(layer_specs: LayerSpecs, kv_dtype: torch.dtype, state_dtype: torch.dtype, memory_bytes: int) -> int:
    """The longest sequence that `memory_bytes` hold: 0 if none, 2^62 if nothing grows with the sequence."""
    per_token, per_seq = _bytes(_stored(layer_specs, kv_dtype, state_dtype))
    left = memory_bytes - 2 * per_seq
    if left < 0 or not per_token:
        return 0 if left < 0 else 1 << 62
    return max(0, left // (per_token * PAGE_SIZE) - 1) * PAGE_SIZE


def _does_not_fit(per_token: int, per_seq: int, context: int, memory_bytes: int, need: int, fits: int) -> FitError:
    shorter = f"a context of at most {fits:,} tokens (--ctx {fits}), or " if fits else ""
    return FitError(
        f"a context of {context:,} tokens needs {show_size(need)} of cache; {show_size(memory_bytes)} is there for it",
        why=f"a sequence takes {per_token:,} bytes per token and {per_seq:,} bytes of fixed-size state"
        f" (counted twice: one is the zero state); pages hold {PAGE_SIZE} tokens and one is the null page",
        try_=f"{shorter}{show_size(need - memory_bytes)} more cache memory (--mem SIZE)",
    )


@dataclass(frozen=True, slots=True)
class _State:
    """What layers must agree on to share one tensor."""

    name: str
    paged: bool
    lanes: bool
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


def _stored(layer_specs: LayerSpecs, kv_dtype: torch.dtype, state_dtype: torch.dtype) -> dict[_State, list[int]]:
    """The states to allocate, in order of declaration, with the layers that have each."""
    found: dict[_State, list[int]] = {}
    for layer, specs in enumerate(layer_specs):
        if len({spec.name for spec in specs}) < len(specs):
            raise UserError(f"layer {layer} declares two states of one name", why="states are found by their names")
        for spec in specs:
            paged = spec.kind == "paged"
            dtype = spec.dtype or (kv_dtype if paged else state_dtype)
            if not paged and dtype.is_floating_point:
                dtype = torch.promote_types(dtype, state_dtype)
            assert paged or not spec.lanes, "only pages have lanes"
            found.setdefault(_State(spec.name, paged, spec.lanes, spec.shape, dtype), []).append(layer)
    return found


def _bytes(stored: Mapping[_State, Sequence[int]]) -> tuple[int, int]:
    """Bytes per token and bytes per sequence, over all layers."""
    per_token = sum(state.nbytes * len(layers) for state, layers in stored.items() if state.paged)
    per_seq = sum(state.nbytes * len(layers) for state, layers in stored.items() if not state.paged)
    return per_token, per_seq


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    size = int(torch.Size(shape).numel()) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros writes every byte. numpy.zeros does not, but asks for huge pages: the first token of the first request
    # would then map 2 MiB in every layer (0.2 s and 116 MiB for 30 layers). The mapping lives as long as the tensor.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(shape)
