"""What a running chat template has used: the account behind `sandbox`.

The *weight* of a value is its characters and items, nested ones as often as they occur (what printing or comparing it
would cost); what is *charged* for it is the memory it takes itself. Both are bounded, and so is the time.
"""

import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from types import MethodType
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.runtime import Context, LoopContext
from jinja2.utils import Namespace

MAX_WEIGHT = 16 << 20  # of one value
MAX_CHARGES = 128 << 20  # of all values that a rendering makes
METER = " meter"  # the context variable of the meter: a name that template syntax cannot spell
_ITEM = 16  # weight of a value besides its characters
_REFERENCE, _ENTRY = 8, 64  # bytes of an item in a list, and of one in a dictionary with its share of the table
_MAX_BITS = 1 << 14  # of an integer


class Overrun(TemplateError):
    """The template takes too long or makes too much."""


class Meter:
    """What one rendering has used. clock: seconds, monotonic."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._seconds, self._deadline = clock, seconds, clock() + seconds
        self._left = MAX_CHARGES
        # Weights of containers met before; the values are kept so that their ids stay theirs.
        self._known: dict[int, tuple[Any, int]] = {}

    def tick(self, size: int = 0) -> str:
        """One step that writes `size` characters."""
        if self._clock() > self._deadline:
            raise Overrun(f"it ran longer than {self._seconds:g} s")
        return self.charge(size)

    def charge(self, size: int) -> str:
        """`size` more units are about to be made, or were made by work in proportion to what was charged before."""
        self._left -= size
        if self._left < 0:
            raise Overrun(f"it makes more than {MAX_CHARGES >> 20} MiB of values")
        return ""

    def allow(self, weight: int) -> int:
        """A value of this weight is about to be made."""
        if weight > MAX_WEIGHT:
            raise Overrun(f"it makes a value of more than {MAX_WEIGHT >> 20} MiB")
        return weight

    def allow_bits(self, bits: int) -> None:
        """An integer of `bits` bits is about to be made."""
        if bits > _MAX_BITS:
            raise Overrun(f"it makes a number of more than {_MAX_BITS} bits")

    def weigh(self, value: Any) -> int:
        """Characters and items of `value`, nested ones as often as they occur. Raises Overrun above MAX_WEIGHT."""
        if isinstance(value, str):
            return _ITEM + len(value)
        if isinstance(value, int):
            self.allow_bits(value.bit_length())
            return _ITEM
        if isinstance(value, Mapping):
            parts: Iterable[Any] = (part for pair in value.items() for part in pair)
        elif isinstance(value, list | tuple | KeysView | ValuesView | ItemsView):
            parts = value
        elif isinstance(value, MethodType):
            parts = (value.__self__,)  # which it is printed with
        else:
            return _ITEM  # namespaces and loops among them: neither printing nor comparing walks into them
        found = self._known.get(id(value))
        if found is not None:
            return found[1]
        total = _ITEM
        for part in parts:
            total = self.allow(total + self.weigh(part))
        self._known[id(value)] = (value, total)
        return total

    def made(self, value: Any) -> Any:
        """Charge for a new value and hand it on; a generator is charged while it runs."""
        if isinstance(value, Iterator) and not isinstance(value, LoopContext):
            return self._metered(value)
        self.allow(self.weigh(value))
        self.charge(size_of(value))
        return value

    def repeated(self, left: Any, right: Any, times: tuple[int, int], make: Callable[[], Any]) -> Any:
        """`make()`, which puts `times` copies of `left` and `right` together."""
        operands = (left, times[0]), (right, times[1])
        # Copies of a text become one text: only its characters repeat.
        weight = sum(count * (len(value) if isinstance(value, str) else self.weigh(value)) for value, count in operands)
        self.allow(weight)
        self.charge(_ITEM + sum(count * (size_of(value) - _ITEM) for value, count in operands))
        value = make()
        if isinstance(value, list | tuple):
            self._known[id(value)] = (value, weight)
        return value

    def _metered(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.tick()
            yield self.made(value)


def size_of(value: Any) -> int:
    """What a value takes itself. A container is made of references: what it holds was charged when that was made."""
    if isinstance(value, str):
        return _ITEM + len(value)
    if isinstance(value, list | tuple):
        return _ITEM + _REFERENCE * len(value)
    if isinstance(value, Namespace):
        return _ITEM + _ENTRY * len(value._Namespace__attrs)
    return _ITEM + _ENTRY * len(value) if isinstance(value, dict) else _ITEM


def meter_of(context: Context) -> Meter:
    """The meter that the rendering was started with."""
    meter = context.parent[METER]
    assert isinstance(meter, Meter)
    return meter
