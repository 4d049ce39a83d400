"""The models of a server from the command line: what each is called, what it takes, and what all may take."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stretto.core.env import Env
from stretto.core.errors import FitError, UserError
from stretto.core.memory import available_memory, parse_size, show_size
from stretto.core.settings import Settings

_SHARE = 0.9  # of the memory that is free when the server starts: for all models together, if nobody says otherwise
_WEIGHTS = (".gguf", ".safetensors")


@dataclass(frozen=True, slots=True)
class Place:
    """A model to be served. given: as the operator wrote it; names: for clients; need: bytes of weights and cache."""

    given: str
    names: tuple[str, ...]
    path: Path
    settings: Settings
    need: int


def check_size(value: object, what: str) -> None:
    """A check of options: a size."""
    parse_size(str(value), what)


def client_names(given: Sequence[str], served: Sequence[str]) -> list[tuple[str, ...]]:
    """Of each model, for clients: never a path of this machine. served: names of the only one, or one name for each, in
    order. Raises UserError."""
    if len(given) == 1 and served:
        return [tuple(served)]
    if served and len(served) != len(given):
        why = f"{len(served)} names for {len(given)} models"
        raise UserError("--served-model-name", why=why, try_="a name for each model, in their order")
    names: list[tuple[str, ...]] = [(name,) for name in served or [Path(one).name or "model" for one in given]]
    for name in names:
        if names.count(name) > 1:
            why = f"{name[0]} is the name of several"
            raise UserError("models need names that differ", why=why, try_="--served-model-name for each")
    return names


def places(
    given: Sequence[str], names: Sequence[tuple[str, ...]], settings: Settings, memory: str | None, env: Env
) -> tuple[list[Place], int | None]:
    """The models, and the bytes that all together may take; None = one model alone may take what there is.

    Weights are counted as the bytes of their files. Where nobody says how large a cache is, each has an equal part of
    what the largest model leaves, so that each fits alone. Raises UserError, FitError for one that does not.
    """
    from stretto.hub.models import resolve

    paths = [resolve(one, env=env) for one in given]
    weights = [bytes_of(path) for path in paths]
    if len(given) == 1 and memory is None:
        return [Place(given[0], names[0], paths[0], settings, weights[0] + (settings.memory_bytes or 0))], None
    limit = parse_size(memory, "--models-memory") if memory is not None else int(_SHARE * available_memory())
    cache = settings.memory_bytes or max(0, limit - max(weights)) // len(given)
    found = [
        Place(one, name, path, settings.replace(memory=max(1, cache)), size + cache)
        for one, name, path, size in zip(given, names, paths, weights, strict=True)
    ]
    for place in found:
        if place.need > limit:
            raise FitError(
                f"{place.given} needs {show_size(place.need)}",
                why=f"all models together may take {show_size(limit)}",
                try_="a larger --models-memory, or a smaller --mem",
            )
    return found, limit


def bytes_of(path: Path) -> int:
    """Of the weights, as the files hold them."""
    files = [path] if path.is_file() else [one for one in path.iterdir() if one.suffix in _WEIGHTS]
    return sum(file.stat().st_size for file in files)
