"""Ends the workers of a benchmark that is gone, however it went: a process that waits for the end of its input.

A line says "+ID" when a process group starts and "-ID" when it has ended. When the input ends, all groups that are left
get SIGKILL, which stopped processes obey too. A benchmark that is killed says nothing any more, but its pipe is closed.
Standard library only, in a session of its own: what ends the benchmark does not reach it.
"""

import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    """Wait, and end what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line.startswith("+") else groups.discard)(int(line[1:]))
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
