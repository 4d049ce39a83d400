"""Writes the generated pages: docs/CATALOGUE.md from the cards, docs/CLI.md from the help pages, and the table of
measured numbers in README.md from bench/records/. With `--check` nothing is written: stale pages are shown as a diff
and the exit code is 1.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from records import Record, newest, read_records
from stretto.core.card import REGISTRIES, Can, Card, Registry

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- measured: begin (written by tools/make_docs.py) -->", "<!-- measured: end -->"
SOCKETS = {
    "mixer": "how a layer moves information between the tokens of a sequence",
    "channel": "what a layer does with every token on its own",
    "codec": "how numbers are stored",
    "drafter": "what might come next",
    "judge": "which drafts may stay",
    "policy": "who runs, who gives way, how much is drafted",
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
    readme = root / "README.md"
    return {
        root / "docs" / "CATALOGUE.md": catalogue(REGISTRIES),
        root / "docs" / "CLI.md": cli_page(),
        readme: with_measured(readme.read_text(encoding="utf-8"), read_records(root / "bench" / "records")),
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
    "presets": lambda card: ", ".join(f"`{name}`" for name in sorted(card.presets)),
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


# -- measured numbers --------------------------------------------------------------------------------------------------


def with_measured(readme: str, records: Sequence[Record]) -> str:
    """The README with the table between its two marks written again."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"README.md has lost its marks {BEGIN!r} and {END!r}"
    return f"{before}{BEGIN}\n{measured(records)}\n{END}{after}"


def measured(records: Sequence[Record]) -> str:
    """The newest record of every name: median, spread, share of the stated bound, where and how it was measured.

    Of a record that compares systems (`machine.systems`), only our rows are shown; the chart has the others.
    """
    columns: dict[str, list[str]] = {
        title: [] for title in ("quantity", "median (spread)", "of bound", "machine", "date, commit", "command")
    }
    for record in newest(records):
        compares = "systems" in record.machine
        for result in record.results:
            if compares and not result.quantity.endswith(": stretto"):
                continue
            low, high = result.spread
            share = f"{result.value / result.bound:.0%} of {result.bound:.4g}" if result.bound else ""
            spread = f"{result.value:.4g} {result.unit} ({low:.4g} to {high:.4g}, of {result.median_of})"
            cells = (f"{record.name}: {result.quantity}", spread, share, record.where)
            row = (*cells, f"{record.date}, {record.commit[:9]}", f"`{record.command}`")
            for column, cell in zip(columns.values(), row, strict=True):
                column.append(cell)
    return table(columns) if columns["quantity"] else "No record yet."


if __name__ == "__main__":
    sys.exit(main())
