"""What the memory of all sequences is made of, in numbers: no torch, no addresses.

An array holds one state, or what the format of a page keeps beside it, for all layers that declare it:
`[layers, pages or slots, unit]`. A unit is a page of PAGE_SIZE tokens or the state of one sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stretto.cache.ledger import Room
from stretto.core.pages import PAGE_SIZE, PageGroup


@dataclass(frozen=True, slots=True)
class PoolArray:
    """group: number of its page group, None = slots. layers: how many have it. numbers: of a token, or of a sequence;
    item_bytes: of a number. by_lanes: a page is [numbers, PAGE_SIZE] in memory, else [PAGE_SIZE, numbers]."""

    group: int | None
    layers: int
    numbers: int
    item_bytes: int
    by_lanes: bool = False

    @property
    def unit_bytes(self) -> int:
        """Bytes of a page or a slot, in one layer."""
        return self.numbers * self.item_bytes * (1 if self.group is None else PAGE_SIZE)


@dataclass(frozen=True, slots=True)
class PoolLayout:
    """groups: the page groups, in order. arrays: all of them, in the order in which they are allocated."""

    groups: tuple[PageGroup, ...]
    arrays: tuple[PoolArray, ...]

    @property
    def page_bytes(self) -> dict[PageGroup, int]:
        """Bytes of a page of every group, in all layers."""
        return {
            group: sum(a.layers * a.unit_bytes for a in self.arrays if a.group == i)
            for i, group in enumerate(self.groups)
        }

    @property
    def slot_bytes(self) -> int:
        """Bytes of the slots of one sequence."""
        return sum(a.layers * a.unit_bytes for a in self.arrays if a.group is None)

    @property
    def has_slots(self) -> bool:
        """Whether any layer keeps something per sequence."""
        return any(a.group is None for a in self.arrays)

    def num_units(self, array: PoolArray, num_blocks: Sequence[int], num_slots: int) -> int:
        """Pages or slots of an array. num_blocks: per group."""
        return num_slots if array.group is None else num_blocks[array.group]

    def nbytes(self, num_blocks: Sequence[int], num_slots: int) -> int:
        """Bytes of all arrays."""
        return sum(a.layers * a.unit_bytes * self.num_units(a, num_blocks, num_slots) for a in self.arrays)


class Allocated:
    """Pools of a layout in numbers, whatever their memory is. num_blocks: per page group, page 0 included; num_slots:
    slot 0 included."""

    layout: PoolLayout
    num_blocks: tuple[int, ...]
    num_slots: int

    @property
    def has_slots(self) -> bool:
        """Whether any layer keeps something per sequence."""
        return self.layout.has_slots

    @property
    def room(self) -> Room:
        """What there is to give, as numbers."""
        return Room(
            groups=self.layout.groups, num_blocks=self.num_blocks, num_slots=self.num_slots, has_slots=self.has_slots
        )

    @property
    def num_pages(self) -> int:
        """Pages that can be handed out, of all groups."""
        return sum(self.num_blocks) - len(self.num_blocks)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, touched or not."""
        return self.layout.nbytes(self.num_blocks, self.num_slots)
