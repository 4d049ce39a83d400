"""`python timed.py COMMAND...`: one process from start to exit, as JSON with "code", "seconds" and "peak_bytes".

A process of its own, and a small one: the peak of a process counts from that of the one that starts it. What COMMAND
prints goes nowhere; what it says on stderr stays there.
"""

import json
import os
import subprocess
import sys
import time


def main() -> None:
    """Run it and print what it took."""
    started = time.perf_counter()
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    print(json.dumps({"code": process.returncode, "seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
