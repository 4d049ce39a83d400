"""`PoolMemory`: the pools without tensors, for native kernels that run without torch.

The same arrays as those of `Pools`, in the same order. Memory is mapped when it is first written.
"""

from array import array
from collections.abc import Sequence

from stretto.cache.layout import Allocated, PoolLayout
from stretto.cache.placement import Placed, Placement
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

    def check(self) -> None:
        """Assert that nobody wrote the null page or the zero state (for tests)."""
        for i, a in enumerate(self.layout.arrays):
            for layer in range(a.layers):
                first = self._memory[i].read(layer * self._layer_bytes[i], a.unit_bytes)
                assert not first.strip(b"\0"), "the null page or the zero state was written"
