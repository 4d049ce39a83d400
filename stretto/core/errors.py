"""What goes wrong in front of a user: every class has its exit code of the command line.

`UserError` is for input, settings and files; `assert` is for what would be our own bug. The command line prints the
three lines of `lines()` and no traceback.
"""

import difflib
from collections.abc import Sequence


class UserError(ValueError):
    """Bad input or settings: an unknown name, a missing path, NaN, a prompt longer than the context (exit code 2).

    error: what was given and what is wrong with it. why: the rule or limit behind it. try_: what to do next.
    """

    exit_code = 2

    def __init__(self, error: str, why: str | None = None, try_: str | None = None) -> None:
        super().__init__(error)
        self.error, self.why, self.try_ = error, why, try_

    def lines(self) -> list[str]:
        """The message as it is printed: `error:`, then `why:` and `try:` where they are known."""
        parts = [("error", self.error), ("why", self.why), ("try", self.try_)]
        return [f"{label}: {text}" for label, text in parts if text]

    def __str__(self) -> str:
        return "\n".join(self.lines())


class RunError(UserError):
    """The world failed while we ran: network, disk, a port, a check (exit code 1)."""

    exit_code = 1


class BusyError(UserError):
    """All places are taken (exit code 1). retry_after: seconds until one should be free."""

    exit_code = 1

    def __init__(self, error: str, why: str | None = None, try_: str | None = None, *, retry_after: float) -> None:
        super().__init__(error, why, try_)
        self.retry_after = retry_after


class ModelFileError(UserError):
    """A model file is damaged, or asks for something that is not supported (exit code 3)."""

    exit_code = 3


class FitError(UserError):
    """The request does not fit into memory (exit code 4)."""

    exit_code = 4


class MissingDependency(UserError):
    """An optional dependency is not installed (exit code 5)."""

    exit_code = 5


def near(word: str, known: Sequence[str]) -> str:
    """What to try in place of an unknown word."""
    close = difflib.get_close_matches(word, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"one of {', '.join(known)}"
