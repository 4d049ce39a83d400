"""Where the states of a call lie, as integers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stretto.core.state import SlotRef


@dataclass(frozen=True, slots=True)
class PagePlacement:
    """Where the keys of one page group lie: `Locations` as integers.

    tables: per sequence, its pages. slot_mapping: per row, page * PAGE_SIZE + offset. key_positions: per sequence, the
    positions of the keys that it holds; None: all of its context, in order. num_shared: per sequence, how many of its
    first keys lie on the pages of the sequence before it; None: nothing is known of that.
    """

    tables: Sequence[Sequence[int]] = ()
    slot_mapping: Sequence[int] = ()
    key_positions: Sequence[Sequence[int]] | None = None
    num_shared: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the states of a call's sequences lie.

    pages: one per page group, in the order of `PoolLayout.groups` (an empty placement may leave them out). source,
    destination: per sequence, the slots of its entry state and of its next state.
    """

    pages: Sequence[PagePlacement] = ()
    source: Sequence[int] = ()
    destination: Sequence[int] = ()


class Placed(Sequence[Any]):
    """The caches of a call for readers that need its placement only. As a sequence of layers it is empty."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement

    @property
    def slots(self) -> "list[SlotRef]":
        """The fixed-size states that somebody has looked at."""
        return []

    def __getitem__(self, layer: Any) -> Any:
        raise IndexError(layer)

    def __len__(self) -> int:
        return 0
