"""Cold start, peak memory, decode and prefill speed through torch: writes bench/records/foundation.json.

    python bench/foundation.py [--runs 5]

Every run of the command line is a process of its own, as a user starts it, with the model already pulled. Prompts are
real text. The speeds come from `stretto bench` (its bounds too); nothing here is a test.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from stretto.planner.record import result

RECORD = Path(__file__).parent / "records" / "foundation.json"
STRETTO = [sys.executable, "-m", "stretto"]
BACKEND = ["--backend", "torch"]
ONE_TOKEN = ["run", "smollm2", "hi", "-n", "1", "--temp", "0"]
ANSWER = ["run", "smollm2", "Why is the sky blue?", "-n", "128", "--temp", "0", "--draft", "none"]


def one_process(words: list[str]) -> tuple[float, float]:
    """(seconds from start to exit, peak resident megabytes) of one command line."""
    started = time.perf_counter()
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*STRETTO, *words], **quiet)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return seconds, usage.ru_maxrss / 1000


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    one_process([*ONE_TOKEN, *BACKEND])  # warms the page cache
    cold, peak = [], []
    for turn in range(runs):
        print(f"process {turn + 1}/{runs}", file=sys.stderr)
        cold.append(one_process([*ONE_TOKEN, *BACKEND])[0])
        peak.append(one_process([*ANSWER, *BACKEND])[1])
    words = ["bench", "smollm2", "--json", "--prompt-tokens", "128,512,1024", "--streams", "1,8", "--repeat", str(runs)]
    words += BACKEND
    record = json.loads(subprocess.run([*STRETTO, *words], check=True, stdout=subprocess.PIPE).stdout)
    record["name"] = "SmolLM2-135M, torch, bf16"
    record["command"] = f"python bench/foundation.py --runs {runs}"
    record["results"] = [
        result("cold start: `stretto run smollm2 hi -n 1`", "s", cold),
        result("peak memory of a 128-token answer", "MB", peak),
        *record["results"],
    ]
    record["samples"] |= {"cold start": cold, "peak memory": peak}
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {RECORD}", file=sys.stderr)


if __name__ == "__main__":
    main()
