"""One line of standard error that says how far a search is."""

import sys
import time
from typing import TYPE_CHECKING

from stretto.cli._terminal import harmless, is_terminal
from stretto.core.env import read_display

if TYPE_CHECKING:
    from stretto.solve.group import Group
    from stretto.solve.status import Status

_EVERY = 0.1  # seconds between two states of the line


class Live:
    """Called with the group whenever tokens came. Silent where no person looks. label: before the line."""

    def __init__(self, label: str = "") -> None:
        self._label, self._last = label, 0.0
        self._works = is_terminal(sys.stderr) and not read_display().dumb

    def __call__(self, group: "Group") -> None:
        now = time.monotonic()
        if self._works and now - self._last > _EVERY:
            from stretto.solve.status import status_of

            self._last = now
            self._write(self._label + line(status_of(group)))

    def close(self) -> None:
        """The line is gone."""
        if self._works:
            self._write("")

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{harmless(text)}")
        sys.stderr.flush()


def line(status: "Status") -> str:
    """A status in words."""
    leader = (
        "" if status.leader is None else f" · {status.leader:.20} leads with {status.votes[0]} of {status.votes[1]}"
    )
    return f"{status.running} running, {status.ended} ended · {status.tokens:,} tokens{leader}"
