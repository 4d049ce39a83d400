"""The memory of all sequences: one tensor per state, with a leading layer dimension.

Paged states are `[layers, P, PAGE_SIZE, *shape]`, slot states `[layers, slots, *shape]`, where `layers` counts the
layers that declare the state, and P the pages of its page group. A paged state that lies lane by lane is a view of that
shape: in memory it is `[layers, P, *shape, PAGE_SIZE]`. Page 0 of every group and slot 0 stay zero. On the CPU, memory
is mapped when it is first written, so a large pool costs what was used of it; it reads as zeros until then.
"""

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stretto.cache.layout import Allocated, PoolArray, PoolLayout
from stretto.cache.placement import PagePlacement, Placed, Placement
from stretto.core.errors import UserError
from stretto.core.page_format import PageFormat
from stretto.core.pages import PAGE_SIZE, Locations, PageGroup
from stretto.core.state import PageRef, SlotRef, StateSpec

LayerSpecs = Sequence[Sequence[StateSpec]]


class Caches(Placed):
    """The states of every layer for one call. A tape reads `placement` only; the views are made if somebody asks."""

    def __init__(self, pools: "Pools", placement: Placement) -> None:
        super().__init__(placement)
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


class Pools(Allocated):
    """The tensors behind every `PageRef` and `SlotRef`. Who owns what is the business of `CacheManager`.

    layer_specs: per layer, what its mixer (and channel) declares. num_blocks: per page group, in the order of `groups`,
    or one number for all, page 0 included. kv: the format of paged states that name no codec.
    state_dtype: of the activations; slot states are at least that wide, as in `TensorCache`. lanes: whether states that
    want it lie lane by lane, for native kernels.
    Raises UserError for two states of one name in a layer.
    """

    def __init__(
        self,
        layer_specs: LayerSpecs,
        *,
        num_blocks: int | Sequence[int],
        num_slots: int,
        kv: PageFormat,
        state_dtype: torch.dtype,
        device: torch.device | str = "cpu",
        lanes: bool = False,
    ) -> None:
        stored = _stored(layer_specs, kv, state_dtype)
        self.layout = _layout(stored, lanes=lanes)
        self.groups = self.layout.groups
        self.num_blocks = (num_blocks,) * len(self.groups) if isinstance(num_blocks, int) else tuple(num_blocks)
        self.num_slots, self.device = num_slots, torch.device(device)
        assert len(self.num_blocks) == len(self.groups)
        assert min((*self.num_blocks, num_slots)) >= 1, "page 0 and slot 0 always exist"
        self._paged: list[list[Tensor]] = [[] for _ in self.groups]
        self._slots: list[Tensor] = []
        self._layers: list[dict[str, _View]] = [{} for _ in layer_specs]
        for state, layers in stored.items():
            if state.group is None:
                group, parts = None, [_zeros((len(layers), num_slots, *state.shape), state.dtype, self.device)]
                self._slots += parts
            else:
                group = self.groups.index(state.group)
                leading = len(layers), self.num_blocks[group]
                by_lanes = lanes and state.lanes
                parts = [_pages(leading, state.shape, state.format.dtype, self.device, by_lanes)]
                for _ in range(state.format.sides):
                    parts.append(_pages(leading, state.shape[:-1], torch.float32, self.device, by_lanes))
                self._paged[group] += parts
            for layer, *views in zip(layers, *(part.unbind(0) for part in parts), strict=True):
                self._layers[layer][state.name] = _View(views, group, state.format)
        order = iter(self._slots), *map(iter, self._paged)
        # As in the layout: in the order of the states.
        self._arrays = [next(order[0 if a.group is None else a.group + 1]) for a in self.layout.arrays]

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in the order of `layout.arrays`."""
        return self._arrays

    def address(self, number: int, layer: int) -> int:
        """Where a layer of an array of `layout` begins."""
        return self._arrays[number][layer].data_ptr()

    def caches(self, placement: Placement) -> Caches:
        """The states of every layer for one call."""
        return Caches(self, placement)

    def refs(self, placement: Placement) -> list[dict[str, PageRef | SlotRef]]:
        """The states of every layer for one call, with the placement as tensors that all layers share."""
        pages = placement.pages or [PagePlacement()] * len(self.groups)
        where = [self._locations(group, own) for group, own in enumerate(pages)]
        source, destination = map(self.index, (placement.source, placement.destination))
        return [
            {
                name: SlotRef(view.parts[0], source, destination)
                if view.group is None
                else PageRef(view.parts[0], where[view.group], view.format, view.parts[1:])
                for name, view in layer.items()
            }
            for layer in self._layers
        ]

    def _locations(self, group: int, placement: PagePlacement) -> Locations:
        width = max(map(len, placement.tables), default=0)
        padded = [[*table, *[0] * (width - len(table))] for table in placement.tables]
        positions = placement.key_positions
        return Locations(
            block_table=self.index(padded).view(len(padded), width),
            slot_mapping=self.index(placement.slot_mapping),
            group=group,
            key_positions=None if positions is None else [self.index(own) for own in positions],
        )

    def index(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        """int64, where the pools are."""
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def move(self, group: int, source: Sequence[int], destination: Sequence[int]) -> None:
        """Copy token rows in every layer and state of a page group: page * PAGE_SIZE + offset.

        All rows are read before any is written, so the two may overlap; destinations are distinct.
        """
        source_slots, destination_slots = self.index(source), self.index(destination)
        for tensor in self._paged[group]:
            if tensor.is_contiguous():
                rows = tensor.flatten(1, 2)
                rows.index_copy_(1, destination_slots, rows.index_select(1, source_slots))
            else:  # lane by lane, which no view shows token by token
                read, written = ((slots // PAGE_SIZE, slots % PAGE_SIZE) for slots in (source_slots, destination_slots))
                tensor[:, *written] = tensor[:, *read]

    def clear(self, group: int, pages: Sequence[int]) -> None:
        """Fill pages of a group with zeros in every layer."""
        if pages:
            index = torch.tensor(pages, dtype=torch.int64, device=self.device)
            for tensor in self._paged[group]:
                tensor.index_fill_(1, index, 0)

    def read_units(self, number: int, units: Sequence[int]) -> bytes:
        """A copy of pages or slots of an array of `layout`: [layers, units, unit], pages token by token."""
        found = self._arrays[number][:, self.index(units)].cpu().contiguous()
        return found.flatten().view(torch.uint8).numpy().tobytes()

    def write_units(self, number: int, units: Sequence[int], data: bytes | memoryview) -> None:
        """The inverse of `read_units`."""
        if units:
            tensor = self._arrays[number]
            values = torch.frombuffer(bytearray(data), dtype=tensor.dtype)
            tensor[:, self.index(units)] = values.view(len(tensor), len(units), *tensor.shape[2:]).to(self.device)

    def copy_slot(self, source: int, destination: int) -> None:
        """Copy one sequence's slot states, in every layer."""
        assert destination != 0, "the zero state is never written"
        for tensor in self._slots:
            tensor[:, destination] = tensor[:, source]

    def check(self) -> None:
        """Assert that nobody wrote the null page or the zero state (reads device memory: for tests)."""
        for tensor in self.tensors:
            assert not tensor[:, 0].any(), "the null page or the zero state was written"


@dataclass(frozen=True, slots=True)
class _State:
    """What layers must agree on to share one tensor."""

    name: str
    group: PageGroup | None  # None: a slot
    lanes: bool
    shape: tuple[int, ...]
    format: PageFormat  # of a page
    dtype: torch.dtype  # of a slot


@dataclass(frozen=True, slots=True)
class _View:
    """A state of one layer: the slots, or the payload and the sides of pages."""

    parts: Sequence[Tensor]
    group: int | None
    format: PageFormat


def _stored(layer_specs: LayerSpecs, kv: PageFormat, state_dtype: torch.dtype) -> dict[_State, list[int]]:
    """The states to allocate, in order of declaration, with the layers that have each."""
    found: dict[_State, list[int]] = {}
    for layer, specs in enumerate(layer_specs):
        if len({spec.name for spec in specs}) < len(specs):
            raise UserError(f"layer {layer} declares two states of one name", why="states are found by their names")
        for spec in specs:
            group = PageGroup.parse(spec.group) if spec.kind == "paged" else None
            format, dtype = spec.format(kv), spec.dtype or state_dtype
            if dtype.is_floating_point:
                dtype = torch.promote_types(dtype, state_dtype)
            assert group is not None or not spec.lanes, "only pages have lanes"
            assert group is None or spec.shape or not format.sides, "a format with scales stores heads"
            found.setdefault(_State(spec.name, group, spec.lanes, spec.shape, format, dtype), []).append(layer)
    return found


def layout_of(layer_specs: LayerSpecs, kv: PageFormat, state_dtype: torch.dtype) -> PoolLayout:
    """The memory that these states take. The arguments are those of `Pools`."""
    return _layout(_stored(layer_specs, kv, state_dtype), lanes=False)


def _layout(stored: Mapping[_State, Sequence[int]], *, lanes: bool) -> PoolLayout:
    groups: list[PageGroup] = []
    arrays: list[PoolArray] = []
    for state, layers in stored.items():
        numbers = int(torch.Size(state.shape).numel())
        if state.group is None:
            arrays.append(PoolArray(None, len(layers), numbers, state.dtype.itemsize))
            continue
        if state.group not in groups:
            groups.append(state.group)
        group, by_lanes = groups.index(state.group), lanes and state.lanes
        arrays.append(PoolArray(group, len(layers), numbers, state.format.dtype.itemsize, by_lanes))
        heads = int(torch.Size(state.shape[:-1]).numel())
        arrays += [PoolArray(group, len(layers), heads, 4, by_lanes)] * state.format.sides
    return PoolLayout(tuple(groups), tuple(arrays))


def _pages(
    leading: tuple[int, int], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, by_lanes: bool
) -> Tensor:
    """[*leading, PAGE_SIZE, *shape], in memory so or lane by lane."""
    if by_lanes:
        return _zeros((*leading, *shape, PAGE_SIZE), dtype, device).movedim(-1, 2)
    return _zeros((*leading, PAGE_SIZE, *shape), dtype, device)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    size = int(torch.Size(shape).numel()) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros writes every byte. numpy.zeros does not, but asks for huge pages: the first token of the first request
    # would then map 2 MiB in every layer (0.2 s and 116 MiB for 30 layers). The mapping lives as long as the tensor.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(shape)
