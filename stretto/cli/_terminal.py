"""What the verbs share about terminals: colours, progress on standard error, JSON on standard output."""

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from stretto.core.env import read_display

STYLES = {"red": "31", "green": "32", "cyan": "36", "bold": "1", "dim": "2", "bold red": "1;31", "struck": "2;9;31"}
_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person looks at it (a closed stream is no terminal)."""
    return stream is not None and not stream.closed and stream.isatty()


def has_colour(stream: TextIO) -> bool:
    """Whether colours may be written there."""
    display = read_display()
    return is_terminal(stream) and not display.no_color and not display.dumb


def paint(text: str, style: str, on: bool = True) -> str:
    """`text` in a style of `STYLES`, or as it is."""
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if on and text else text


def harmless(text: str) -> str:
    """For terminals: control characters of a model or a file replaced, so that they cannot drive the terminal."""
    return text.translate(_CONTROLS)


def note(text: str) -> None:
    """A line for the person, on standard error; `print` would take standard output where that is closed."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One object on standard output. Strict JSON in ASCII: whatever the locale, nothing is lost; NaN is null."""
    print(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def progress(label: str) -> Callable[[int, int], None]:
    """A callback (done, total) that keeps one line of standard error up to date.

    Silent where no person looks, and on terminals that cannot write a line again.
    """
    last = [0.0]
    dumb = read_display().dumb

    def show(done: int, total: int) -> None:
        now = time.monotonic()
        finished = done >= total
        if is_terminal(sys.stderr) and not dumb and (finished or now - last[0] > 0.1):
            last[0] = now
            share = 100 * done // max(1, total)
            sys.stderr.write("\r\x1b[K" if finished else f"\r\x1b[K{label} {share}%")
            sys.stderr.flush()

    return show


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; cells that start with a digit stand on the right."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        aligned = [c.rjust(w) if c[:1].isdigit() else c.ljust(w) for c, w in zip(cells, widths, strict=True)]
        return "  ".join(aligned).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(headings), rule, *map(line, rows)])
