"""The adapters that the command line names: `--lora NAME=PATH`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from stretto.core.env import expand_home
from stretto.core.errors import UserError
from stretto.core.settings import Settings


@dataclass(frozen=True, slots=True)
class Loras:
    """named: adapters that are loaded at the start; folder: where more may come from."""

    named: dict[str, Path]
    folder: Path | None = None


def read_loras(texts: Sequence[str], folder: Path | None, settings: Settings, *, model_names: Collection[str]) -> Loras:
    """Raises UserError for what can be refused without the model."""
    named: dict[str, Path] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not name or not path:
            raise UserError(f"--lora is {text!r}", why="it is a name and a path", try_="--lora poems=./adapter")
        if name in named or name in model_names:
            raise UserError(f"--lora names {name!r} twice", why="clients tell models and adapters by their names")
        named[name] = check_path(path)
    if folder is not None and not folder.is_dir():
        raise UserError(f"--lora-dir {folder} is no folder", why="adapters are loaded from it by their file names")
    if folder is not None and settings.max_loras <= len(named):
        why = f"--max-loras is {settings.max_loras}, and {len(named)} are loaded at the start"
        raise UserError("--lora-dir without room for adapters", why=why, try_=f"--max-loras {len(named) + 4}")
    return Loras(named, folder)


def check_path(path: str) -> Path:
    """The path of an adapter. Raises UserError if nothing is there."""
    found = Path(expand_home(path))
    if not found.exists():
        raise UserError(f"there is no {found}", why="--lora names a folder with an adapter, or a GGUF file of one")
    return found
