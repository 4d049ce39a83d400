"""The names of the parts of a split GGUF model: NAME-00001-of-00003.gguf and so on."""

import re
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """What the name of a part says. number: from 1."""

    stem: str
    number: int
    count: int
    suffix: str

    def name(self, number: int) -> str:
        """The name of another part of the same model."""
        return f"{self.stem}-{number:05d}-of-{self.count:05d}{self.suffix}"


def parts_of(path: Path) -> Part | None:
    """What the name of `path` says; None if it is not the name of a part."""
    found = _NAME.fullmatch(path.name)
    return Part(found["stem"], int(found["number"]), int(found["count"]), found["suffix"]) if found else None
