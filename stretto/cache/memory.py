"""`PoolMemory`: the pools without tensors, for native kernels that run without torch.

The same arrays as those of `Pools`, in the same order. Memory is mapped when it is first written.
"""

from array import array
from collections.abc import Sequence

from stretto.cache.layout import Allocated, PoolLayout
from stretto.cache.placement import Placed, Placement
from stretto.core.pages import PAGE_SIZE
from stretto.kernels.native.library import Team
from stretto.kernels.native.memory import Memory


class PoolMemory(Allocated):
    """num_blocks: per page group, page 0 included; num_slots: slot 0 included. team: who moves rows."""

    def __init__(self, layout: PoolLayout, num_blocks: Sequence[int], num_slots: int, team: Team) -> None:
        self.layout, self.num_blocks, self.num_slots = layout, tuple(num_blocks), num_slots
        self._team = team
        units = [layout.num_units(a, self.num_blocks, num_slots) for a in layout.arrays]
        self._layer_bytes = [n * a.unit_bytes for n, a in zip(units, layout.arrays, strict=True)]
        self._memory = [Memory(a.layers * n) for n, a in zip(self._layer_bytes, layout.arrays, strict=True)]

    def address(self, number: int, layer: int) -> int:
        """Where a layer of an array begins."""
        return self._memory[number].address + layer * self._layer_bytes[number]

    def caches(self, placement: Placement) -> Placed:
        """What a forward pass reads of its caches: where they lie."""
        return Placed(placement)

    def move(self, group: int, source: Sequence[int], destination: Sequence[int]) -> None:
        """Copy token rows in every layer and state of a page group: page * PAGE_SIZE + offset.

        All rows are read before any is written, so the two may overlap; destinations are distinct.
        """
        rows = array("q", source), array("q", destination)
        where = [values.buffer_info()[0] for values in rows]
        calls = [
            {
                "pages": self.address(i, 0),
                "layer_bytes": self._layer_bytes[i],
                "num_layers": a.layers,
                "numbers": a.numbers,
                "item_bytes": a.item_bytes,
                "by_lanes": a.by_lanes,
                "num_rows": len(source),
                "source": where[0],
                "destination": where[1],
            }
            for i, a in enumerate(self.layout.arrays)
            if a.group == group
        ]
        self._team.run_once("move_tokens", calls)

    def clear(self, group: int, pages: Sequence[int]) -> None:
        """Fill pages of a group with zeros in every layer."""
        for i, a in enumerate(self.layout.arrays):
            if a.group == group:
                for layer in range(a.layers):
                    for page in pages:
                        start = layer * self._layer_bytes[i] + page * a.unit_bytes
                        self._memory[i].write(bytes(a.unit_bytes), start)

    def read_units(self, number: int, units: Sequence[int]) -> bytes:
        """A copy of pages or slots of an array: [layers, units, unit], pages token by token."""
        a, memory = self.layout.arrays[number], self._memory[number]
        found = [memory.read(start, a.unit_bytes) for start in self._starts(number, units)]
        return b"".join(_by_tokens(page, a.item_bytes) for page in found) if a.by_lanes else b"".join(found)

    def write_units(self, number: int, units: Sequence[int], data: bytes | memoryview) -> None:
        """The inverse of `read_units`."""
        a, memory = self.layout.arrays[number], self._memory[number]
        for i, start in enumerate(self._starts(number, units)):
            unit = data[i * a.unit_bytes : (i + 1) * a.unit_bytes]
            memory.write(_by_lanes(unit, a.item_bytes) if a.by_lanes else unit, start)

    def check(self) -> None:
        """Assert that nobody wrote the null page or the zero state (for tests)."""
        for i, a in enumerate(self.layout.arrays):
            for layer in range(a.layers):
                first = self._memory[i].read(layer * self._layer_bytes[i], a.unit_bytes)
                assert not first.strip(b"\0"), "the null page or the zero state was written"

    def _starts(self, number: int, units: Sequence[int]) -> list[int]:
        """Where units begin, layer after layer."""
        layers, size = self.layout.arrays[number].layers, self.layout.arrays[number].unit_bytes
        return [layer * self._layer_bytes[number] + unit * size for layer in range(layers) for unit in units]


_ITEMS = {1: "B", 2: "H", 4: "I", 8: "Q"}


def _by_tokens(page: bytes, item_bytes: int) -> bytes:
    """[numbers, PAGE_SIZE] -> [PAGE_SIZE, numbers]."""
    items, found = array(_ITEMS[item_bytes], page), array(_ITEMS[item_bytes])
    for token in range(PAGE_SIZE):
        found += items[token::PAGE_SIZE]
    return found.tobytes()


def _by_lanes(page: bytes | memoryview, item_bytes: int) -> bytes:
    """[PAGE_SIZE, numbers] -> [numbers, PAGE_SIZE]."""
    items, numbers = array(_ITEMS[item_bytes], bytes(page)), len(page) // (item_bytes * PAGE_SIZE)
    found = array(_ITEMS[item_bytes], bytes(len(page)))
    for token in range(PAGE_SIZE):
        found[token::PAGE_SIZE] = items[token * numbers : (token + 1) * numbers]
    return found.tobytes()
