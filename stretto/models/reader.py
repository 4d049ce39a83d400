"""`Reader`: a foreign config, read key by key. What changes the result and was not read is refused by name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from stretto.core.errors import ModelFileError

Config = Mapping[str, Any]
MAX_LAYERS = 100_000  # a damaged number must not fill the memory


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads a foreign config and refuses what would change the result without being supported.

    prefix: stands before every key (`llama.`). single: numbers are stored as fp32, and are read as the shortest
    decimal that rounds to them (1e-05, not 9.99999974737875e-06). seen: the keys that were asked for, without prefix.
    """

    config: Config
    where: str
    prefix: str = ""
    single: bool = False
    seen: set[str] = field(default_factory=set, compare=False)

    def get(self, key: str, default: Any) -> Any:
        """The value, or `default` where the key is absent or null."""
        self.seen.add(key)
        value = self.config.get(self.prefix + key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """The value of a key that must be there."""
        value = self.get(key, None)
        if value is None:
            raise ModelFileError(
                f"{self.where} has no {self.prefix + key!r}", why="the architecture cannot be built without it"
            )
        return value

    def count(self, key: str, default: int | None = None, most: int = (1 << 31) - 1) -> int:
        """A positive integer up to `most`; without default it must be there."""
        value = self.need(key) if default is None else self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            self.refuse(key, value, f"it must be a positive integer up to {most}")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; without default it must be there."""
        value = self.need(key) if default is None else self.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            self.refuse(key, value, "it must be a finite number")
        return float(str(np.float32(value))) if self.single else float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, value, "it must be true or false")
        return bool(value)

    def expect(self, key: str, *allowed: Any) -> None:
        """The key must be absent, null or one of `allowed`; anything else is refused by name."""
        value = self.get(key, None)
        if value is not None and value not in allowed:
            names = ", ".join(map(repr, allowed)) or "only files without it"
            self.refuse(key, value, f"it changes the result; supported: {names}")

    def refuse_unread(self, changing: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse every key of `changing` that nobody asked for and whose value is not neutral. changing: key -> its
        neutral values; null and absence are neutral, too. Of several the first of the table is named."""
        for key, neutral in changing.items():
            if key not in self.seen:
                self.expect(key, *neutral)

    def divide(self, total: int, key: str, parts: int) -> int:
        """total / parts, which must leave nothing; `key` is what gave `parts`."""
        if total % parts:
            self.refuse(key, parts, f"it must divide {total}")
        return total // parts

    def refuse(self, key: str, value: Any, why: str) -> NoReturn:
        """Raise ModelFileError over one key."""
        shown = repr(value)
        shown = shown if len(shown) <= 100 else f"{shown[:97]}..."
        raise ModelFileError(f"{self.where}: {self.prefix + key} = {shown} is not supported", why=why)
