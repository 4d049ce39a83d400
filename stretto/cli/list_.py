"""`stretto list`: the catalogue, read from the folders, and the models of the cache."""

import sys
from dataclasses import dataclass
from typing import Any, Literal

from stretto.cli._terminal import has_colour, is_terminal, print_json
from stretto.core.card import REGISTRIES, Can, Card
from stretto.core.env import Env, read_env
from stretto.core.errors import UserError, near
from stretto.core.option import argument, option

EXAMPLES = ("stretto list", "stretto list drafter", "stretto list model --json")
SOCKETS = (*(registry.socket for registry in REGISTRIES), "model")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of `stretto list`."""

    socket: str | None = argument(f"only these: {', '.join(SOCKETS)}", default=None)
    json: bool = option("print one JSON object", default=False)


def run(options: Options) -> int:
    """Print a table per socket."""
    wanted = SOCKETS if options.socket is None else (options.socket,)
    if wanted[0] not in SOCKETS:
        raise UserError(f"unknown socket {options.socket!r}", try_=near(wanted[0], SOCKETS))
    fillers = {r.socket: r.cards() for r in REGISTRIES if r.socket in wanted}
    models = _models(read_env()) if "model" in wanted else None
    if options.json:
        found: dict[str, Any] = {socket: [_as_dict(card) for card in cards] for socket, cards in fillers.items()}
        print_json(found if models is None else {**found, "model": models})
        return 0
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    width = None if is_terminal(sys.stdout) else 120  # as wide as the terminal; a pipe has no width of its own
    colours: Literal["auto"] | None = "auto" if has_colour(sys.stdout) else None
    console = Console(color_system=colours, width=width, highlight=False, markup=False)
    for socket, cards in fillers.items():
        title = f"{socket} ({len(cards)})"
        table = Table("name", "idea", "source", "output", title=title, title_justify="left", box=SIMPLE_HEAD)
        for card in cards:
            table.add_row(card.name, card.idea, card.paper, card.exactness.value)
        console.print(table)
    if models is not None:
        title = f"model ({len(models)})"
        table = Table("name", "MB", "license", title=title, title_justify="left", box=SIMPLE_HEAD)
        table.add_column("where", overflow="fold")
        for model in models:
            where = model["path"] or "not pulled yet"
            table.add_row(model["name"], f"{model['bytes'] / 1e6:.0f}", model["license"] or "", where)
        console.print(table)
    return 0


def _models(env: Env) -> list[dict[str, Any]]:
    """Aliases, pulled or not, and whatever else lies in the cache."""
    from stretto.hub.aliases import aliases
    from stretto.hub.models import cached

    found = {} if env.cache is None else {path.parent.name: path for path in cached(env)}
    models: list[dict[str, Any]] = []
    for name, alias in aliases().items():
        path = found.pop(name, None)
        models.append(
            {
                "name": name,
                "bytes": alias.num_bytes,
                "license": alias.license,
                "source": alias.source,
                "path": path and str(path),
            }
        )
    nothing = {"license": None, "source": None}
    models += [
        {"name": name, "bytes": path.stat().st_size, **nothing, "path": str(path)} for name, path in found.items()
    ]
    return models


def _as_dict(card: Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "idea": card.idea,
        "paper": card.paper,
        "can": [flag.name.lower() for flag in Can if flag in card.can and flag.name],
        "state": card.state,
        "cost": card.cost,
        "exactness": card.exactness.value,
    }
