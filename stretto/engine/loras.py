"""`Loras`: the adapters of an engine by name, who uses them, and when their memory comes free. No torch, no files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stretto.core.errors import UserError, near

if TYPE_CHECKING:
    from stretto.kernels.lora import Factors, LoraTable


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter that is loaded. number: of its place in the table; version: no two that are ever loaded have the same,
    so texts of one go on from texts of no other."""

    name: str
    number: int
    version: int


class Loras:
    """table: None = an engine without room for adapters.

    A name that is unloaded, or loaded again, is no longer found at once; requests that run with the old adapter finish
    with it, and its place comes free with the last of them.
    """

    def __init__(self, table: "LoraTable | None") -> None:
        self.table = table
        self._named: dict[str, Lora] = {}
        self._users: dict[Lora, int] = {}  # every adapter that has a place, and how many requests use it
        self._loaded = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Those that requests may ask for."""
        return tuple(self._named)

    @property
    def room(self) -> int:
        """Most adapters at once."""
        return self.table.size if self.table is not None else 0

    def load(self, name: str, adapter: "Mapping[str, Factors]") -> Lora:
        """Give an adapter a place; one of the same name is unloaded. Raises UserError if there is no place."""
        taken = {lora.number for lora in self._users}
        if (old := self._named.get(name)) is not None and not self._users[old]:
            taken.discard(old.number)
        free = next((n for n in range(1, self.room + 1) if n not in taken), None)
        if self.table is None or free is None:
            raise UserError(
                f"there is no room for the adapter {name!r}",
                why=f"{len(self._users)} are loaded or still used, and max_loras is {self.room}",
                try_="unload one, or a larger max_loras",
            )
        if old is not None:
            self.unload(name)
        self._loaded += 1
        lora = self._named[name] = Lora(name, free, self._loaded)
        self._users[lora] = 0
        self.table.write(free, adapter)
        return lora

    def unload(self, name: str) -> int:
        """Forget a name; returns how many requests still run with its adapter. Raises UserError if there is none."""
        lora = self.find(name)
        del self._named[name]
        users = self._users[lora]
        self._free(lora)
        return users

    def find(self, name: str) -> Lora:
        """The adapter of this name. Raises UserError if there is none."""
        lora = self._named.get(name)
        if lora is None:
            known = near(name, self.names) if self._named else "load_lora(name, path)"
            raise UserError(f"there is no adapter {name!r}", why="none of this name is loaded", try_=known)
        return lora

    def hold(self, lora: Lora | None) -> None:
        """A request uses it; None: a request without an adapter."""
        if lora is not None:
            self._users[lora] += 1

    def release(self, lora: Lora | None) -> None:
        """A request that used it has ended."""
        if lora is not None:
            self._users[lora] -= 1
            self._free(lora)

    def _free(self, lora: Lora) -> None:
        if self._named.get(lora.name) is not lora and not self._users[lora]:
            assert self.table is not None
            del self._users[lora]
            self.table.clear(lora.number)
