"""`stretto top`: what a server is doing, in a terminal."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stretto.cli._server import DEFAULT_URL, Server, bar
from stretto.cli._terminal import harmless, has_colour, is_terminal, print_json
from stretto.core.errors import RunError
from stretto.core.option import option

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

EXAMPLES = ("stretto top", "stretto top --once --json", "stretto top --url http://10.0.0.7:8000 --every 0.5")
BLOCKS = " ▁▂▃▄▅▆▇█"
STEPS = 60  # in the strip
PHASES = {"prefill": "yellow", "decode": "white", "verify": "cyan"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of `stretto top`."""

    url: str = option("address of the server", default=DEFAULT_URL, metavar="URL")
    api_key: str = option("key of the server (default: STRETTO_API_KEY)", default="", metavar="KEY")
    every: float = option("seconds between two looks", default=1.0, low=0.1, high=3600)
    once: bool = option("look once and end", default=False)
    json: bool = option("print one JSON object per look, as /stretto/state gives it", default=False)


def run(options: Options) -> int:
    """Show the state of a server until Ctrl-C, or once."""
    server = Server(options.url, options.api_key)
    state = server.get("/stretto/state")
    if options.json:
        print_json(state)
        while not options.once:
            time.sleep(options.every)
            print_json(server.get("/stretto/state"))
        return 0
    console = _console()
    if options.once or not console.is_terminal:
        console.print(frame(state, options.url, console.width))
        return 0
    from rich.live import Live

    with Live(frame(state, options.url, console.width), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(options.every)
            problem = ""
            try:
                state = server.get("/stretto/state")
            except RunError as found:
                problem = found.error
            live.update(frame(state, options.url, console.width, problem), refresh=True)


def _console() -> "Console":
    from rich.console import Console

    width = None if is_terminal(sys.stdout) else 100
    colours: Literal["auto"] | None = "auto" if has_colour(sys.stdout) else None
    return Console(color_system=colours, width=width, highlight=False, markup=False)


def frame(state: Mapping[str, Any], url: str, width: int, problem: str = "") -> "RenderableType":
    """One picture. problem: why it is no longer true."""
    from rich.console import Group
    from rich.text import Text

    head = Text.assemble(
        (harmless(str(state["model"])), "bold"), f"  {state['status']}  ", (f"{state['backend']}  {url}", "dim")
    )
    if problem:
        head = Text.assemble((f"{problem}; trying again", "bold red"))
    share = state["accepted_tokens"] / state["draft_tokens"] if state["draft_tokens"] else None
    facts = [
        f"{state['tokens_per_second']:.1f} tokens/s",
        f"{state['running']} of {state['max_seqs']} running",
        f"{state['waiting']} waiting",
        "nothing drafted yet" if share is None else f"{share:.0%} of drafts accepted",
        f"{state['preemptions']} preemptions",
    ]
    lines = [head, Text("   ".join(facts)), Text()]
    room = max(20, min(60, width - 48))
    lines += [_pool(pool, room) for pool in state["pools"]]
    lines += [Text(), _steps(state["steps"], min(STEPS, width - 30)), Text()]
    return Group(*lines, _requests(state["requests"]))


def _pool(pool: Mapping[str, Any], width: int) -> "Text":
    from rich.text import Text

    total = max(1, pool["total"])
    parts = bar([(pool["used"] / total, "cyan"), (pool["idle"] / total, "yellow")], width)
    name = f"{pool['kind']} {pool['name']}"
    said = f"  {pool['used']:,} used, {pool['idle']:,} idle, {pool['free']:,} free"
    return Text.assemble(f"{name:<16} ", *parts, (said, "dim"))


def _steps(steps: Sequence[Mapping[str, Any]], width: int) -> "Text":
    from rich.text import Text

    shown = [(one["phase"], 1e3 * one["seconds"] / one["num_steps"]) for one in steps][-width:]
    if not shown:
        return Text("steps            none yet", style="dim")
    highest = max(ms for _, ms in shown)
    parts = [(BLOCKS[max(1, round(8 * ms / highest))] if highest else " ", PHASES[phase]) for phase, ms in shown]
    median = sorted(ms for _, ms in shown)[len(shown) // 2]
    return Text.assemble("steps            ", *parts, (f"  median {median:.1f} ms, highest {highest:.1f}", "dim"))


def _requests(requests: Sequence[Mapping[str, Any]]) -> "RenderableType":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    if not requests:
        return Text("no requests", style="dim")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("id")
    table.add_column("phase")
    for name in ("prompt", "cached", "output", "limit", "pages", "accepted", "age"):
        table.add_column(name, justify="right")
    for one in requests:
        accepted = f"{one['accepted']:,}/{one['drafted']:,}" if one["drafted"] else "-"
        cells = [f"{one[name]:,}" for name in ("prompt", "cached", "output", "limit", "pages")]
        table.add_row(str(one["id"]), one["phase"], *cells, accepted, f"{one['age_s']:.1f} s")
    return table
