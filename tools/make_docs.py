"""Writes the generated pages: docs/CATALOGUE.md from the cards, docs/CLI.md from the help pages, docs/SETTINGS.md from
the fields of the settings, docs/MEASURED.md and the comparison in README.md from bench/records/. With `--check` nothing
is written: stale pages are shown as a diff and the exit code is 1.
"""

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from records import Record, Result, newest, read_records
from stretto.core.card import REGISTRIES, Can, Card, Registry
from stretto.core.env import Env
from stretto.core.option import options_of
from stretto.core.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- measured: begin (written by tools/make_docs.py) -->", "<!-- measured: end -->"
SOCKETS = {
    "mixer": "how a layer moves information between the tokens of a sequence",
    "channel": "what a layer does with every token on its own",
    "codec": "how numbers are stored",
    "drafter": "what might come next",
    "judge": "which drafts may stay",
    "order": "in which order requests are served",
    "victim": "who is preempted when memory runs out",
    "chunk": "how much of a prompt is read in a step",
    "budget": "how many tokens are drafted",
    "length": "how long an answer is expected to be",
    "evict": "what leaves the prefix cache first",
    "search": "how an answer is found among several texts",
    "scorer": "how good a text is",
    "route": "which replica of a server answers a request",
}
_ARXIV = re.compile(r"\d{4}\.\d{4,5}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="write the generated pages")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    args = parser.parse_args(argv)
    stale = False
    for path, page in pages(ROOT).items():
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old == page:
            continue
        name = str(path.relative_to(ROOT))
        if args.check:
            stale = True
            lines = difflib.unified_diff(old.splitlines(), page.splitlines(), name, f"{name} (now)", lineterm="", n=1)
            print("\n".join(lines))
        else:
            path.write_text(page, encoding="utf-8")
            print(f"wrote {name}")
    if stale:
        print("error: generated pages are stale\ntry: make docs", file=sys.stderr)
    return int(stale)


def pages(root: Path) -> dict[Path, str]:
    """Every generated file and what must stand in it now."""
    readme, records = root / "README.md", newest(read_records(root / "bench" / "records"))
    charts = sorted(path.relative_to(root).as_posix() for path in (root / "docs").glob("cpu_peers-*.svg"))
    return {
        root / "docs" / "CATALOGUE.md": catalogue(REGISTRIES),
        root / "docs" / "CLI.md": cli_page(),
        root / "docs" / "SETTINGS.md": settings_page(),
        root / "docs" / "MEASURED.md": measured(records),
        readme: with_comparison(readme.read_text(encoding="utf-8"), records, charts),
    }


# -- the catalogue -----------------------------------------------------------------------------------------------------

_COLUMNS: dict[str, Callable[[Card], str]] = {
    "name": lambda card: f"`{card.name}`",
    "idea": lambda card: card.idea,
    "source": lambda card: source_link(card.paper),
    "state": lambda card: "" if card.state == "none" else card.state,
    "cost": lambda card: card.cost,
    "can": lambda card: ", ".join(f.name.lower() for f in Can if f in card.can and f.name),
    "output": lambda card: card.exactness.value,
}


def catalogue(registries: Sequence[Registry]) -> str:
    """One table per socket; a column that nobody fills is left out."""
    parts = [
        "# Catalogue",
        "Written by `make docs` from the cards; do not edit. A filler is one file in the folder of its socket, and its"
        " name here is the name of that file. Letters of state and cost: `stretto/core/shapes.py`. Words of the column"
        " `output` (what a filler does to the output) and of `can`: `docs/ARCHITECTURE.md` and"
        " `stretto/core/card.py`.",
    ]
    for registry in registries:
        cards = registry.cards()
        heading = f"## {registry.socket.capitalize()}: {SOCKETS[registry.socket]}"
        folder = f"`{registry.package.replace('.', '/')}/`"
        parts.append(heading)
        if not cards:
            parts.append(f"{folder}: none yet.")
            continue
        parts.append(f"{folder}, {len(cards)} {'file' if len(cards) == 1 else 'files'}.")
        cells = {title: [cell(card) for card in cards] for title, cell in _COLUMNS.items()}
        parts.append(table({title: column for title, column in cells.items() if any(column)}))
    return "\n\n".join(parts) + "\n"


def source_link(paper: str) -> str:
    """`2312.06635` -> a link to arXiv; the name of a format stays as it is."""
    return _ARXIV.sub(lambda found: f"[{found[0]}](https://arxiv.org/abs/{found[0]})", paper)


def table(columns: dict[str, list[str]]) -> str:
    """A Markdown table of equally long columns."""
    rows = [list(columns), ["---"] * len(columns), *map(list, zip(*columns.values(), strict=True))]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


# -- the help pages ----------------------------------------------------------------------------------------------------


def cli_page() -> str:
    """`stretto --help` and the help of every verb, as the command prints them."""
    from stretto.cli import VERBS, help_text

    parts = ["# Command line", "Written by `make docs` from the help pages; do not edit.", fenced(help_text(None))]
    for verb, summary in VERBS.items():
        parts += [f"## stretto {verb}", f"{summary.rstrip('.')}.", fenced(help_text(verb))]
    return "\n\n".join(parts) + "\n"


def fenced(text: str) -> str:
    """`text` as a code block, without trailing blanks."""
    return "\n".join(["```text", *(line.rstrip() for line in text.strip("\n").splitlines()), "```"])


# -- the settings ------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    """A row for each setting of a model run, and for each other environment variable."""
    options = options_of(Settings)
    rows = {
        "in Python": [f"`{one.field}`" for one in options],
        "flag": [f"`{one.name} {one.metavar}`" for one in options],
        "variable": [f"`{one.variable}`" for one in options],
        "default": ["" if one.default is None else f"`{one.text_of(one.default)}`" for one in options],
        "what it says": [one.help for one in options],
    }
    variables = [field.metadata for field in dataclasses.fields(Env)]
    others = {
        "variable": [f"`{one['variable']}`" for one in variables],
        "what it says": [one["meaning"] for one in variables],
    }
    parts = [
        "# Settings",
        "Written by `make docs` from the fields of `stretto/core/settings.py`; do not edit.",
        "How a model is run. Every setting is a keyword of `LLM` and `AsyncLLM` and a field of `Settings`, a flag of"
        " the verbs that load a model, and an environment variable. A flag or a keyword wins over the variable, the"
        " variable over the default; an empty variable counts as not set, and beside a `Settings` object that is handed"
        " to `LLM` no variable counts. A verb may have a default of its own: its help page shows it. `stretto show` and"
        " `stretto doctor` print what differs from the defaults, and where it came from. In Python an object may stand"
        " for a name: a `Drafter` with its `DraftPolicy`, a `Judge`, an `OrderPolicy`.",
        table(rows),
        "## Other environment variables",
        "How stretto works on this machine, read by `stretto/core/env.py`. `stretto doctor` prints them.",
        table(others),
    ]
    return "\n\n".join(parts) + "\n"


# -- measured numbers --------------------------------------------------------------------------------------------------


def measured(records: Sequence[Record]) -> str:
    """One section per record: where and how it was measured; medians, spread and share of the stated bound."""
    parts = ["# Measured", "Written by `make docs` from `bench/records/`, where every sample is; do not edit."]
    for record in records:
        columns: dict[str, list[str]] = {title: [] for title in ("quantity", "median", "spread", "of bound")}
        for result in record.results:
            share = f"{result.value / result.bound:.0%} of {result.bound:.4g}" if result.bound else ""
            spread = "{:.4g} to {:.4g}, of {}".format(*result.spread, result.median_of)
            row = result.quantity, f"{result.value:.4g} {result.unit}".rstrip(), spread, share
            for column, cell in zip(columns.values(), row, strict=True):
                column.append(cell)
        how = f"{record.where}; {record.date}, commit {record.commit[:9]}; `{record.command}`"
        heading = f"## {record.name}" + (f", {record.kind}" if record.kind else "")
        parts += [heading, how, table({title: column for title, column in columns.items() if any(column)})]
    return "\n\n".join(parts) + "\n"


def with_comparison(readme: str, records: Sequence[Record], charts: Sequence[str] = ()) -> str:
    """The README with what lies between its two marks written again: a table for every set of records that compare
    systems in the same way, one per kind of CPU; those with the most systems first. charts: pictures, by path."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"README.md has lost its marks {BEGIN!r} and {END!r}"
    sets: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.kind):
        if "systems" in record.machine:
            sets.setdefault(record.name, []).append(record)
    largest_first = sorted(sets.values(), key=lambda same: -max(len(_systems(record)) for record in same))
    pictures = [f"![stretto and other systems, {Path(chart).stem}]({chart})" for chart in charts]
    parts = "\n\n".join([*pictures, *map(comparison, largest_first)])
    return f"{before}{BEGIN}\n{parts or 'No record yet.'}\n{END}{after}"


def comparison(records: Sequence[Record]) -> str:
    """Of records of one name, whose quantities are "QUANTITY: SYSTEM": in a column for each kind of CPU how many times
    as good ours is as the best of the others, and both values. Losses too."""
    columns = [_ratios(record) for record in records]
    quantities = list(dict.fromkeys(quantity for column in columns for quantity in column))
    cells = {"times as good as the best other": quantities}
    for record, column in zip(records, columns, strict=True):
        cells[record.kind or record.where] = [column.get(quantity, "") for quantity in quantities]
    lines = [f"**{records[0].name}.** stretto : the best other."]
    for record in records:
        kind = f"`{record.kind}`: " if record.kind else ""
        lines.append(f"{kind}{record.where}; {record.date}, commit {record.commit[:9]}; `{record.command}`")
        outside = {name: about["not_in_ratio"] for name, about in _systems(record) if "not_in_ratio" in about}
        lines += [f"Not in the ratio of `{record.kind}`: {name} ({reason})" for name, reason in outside.items()]
        missing = [f"{name} ({reason})" for name, reason in record.machine.get("absent", {}).items()]
        lines += [f"Absent: {'; '.join(missing)}"] * bool(missing)
    return "\n\n".join([lines[0], table(cells), "\n".join(f"- {line}" for line in lines[1:])])


def _ratios(record: Record) -> dict[str, str]:
    """A cell for each quantity in which ours was measured."""
    outside = {name for name, about in _systems(record) if "not_in_ratio" in about}
    others: dict[str, list[Result]] = {}
    for result in record.results:
        quantity, _, system = result.quantity.partition(": ")
        if not system.startswith("stretto") and system not in outside:
            others.setdefault(quantity, []).append(result)
    cells = {}
    for result in record.results:
        quantity, _, system = result.quantity.partition(": ")
        if not system.startswith("stretto"):
            continue
        variant = system.removeprefix("stretto").lstrip(", ")
        name = f"{quantity} ({variant})" if variant else quantity
        is_rate = "/s" in result.unit
        if quantity not in others:
            cells[name] = f"{_value(result)} (no other)"
            continue
        best = (max if is_rate else min)(others[quantity], key=lambda one: one.value)
        ratio = result.value / best.value if is_rate else best.value / result.value
        values = f"{_number(result.value)} : {_value(best)}"
        cells[name] = f"**{ratio:.2f}** ({values}, {best.quantity.partition(': ')[2]})"
    return cells


def _systems(record: Record) -> Sequence[tuple[str, dict[str, Any]]]:
    return list(record.machine.get("systems", {}).items())


def _number(value: float) -> str:
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _value(result: Result) -> str:
    return f"{_number(result.value)} {result.unit}"


if __name__ == "__main__":
    sys.exit(main())
