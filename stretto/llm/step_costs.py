"""What a step of this model costs on this machine, measured once and kept in the cache of the user.

A file is named by a hash of everything that the seconds depend on: the model (path, size, time of change), the version
and the backend, the processor, threads and format of the cache. What cannot be read, or is not what it should be, is
measured again; a cache that cannot be written is done without. What is measured twice and differs is not kept. Needs no
torch.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import stretto
from stretto.core.env import Env
from stretto.core.files import write_whole

FOLDER = "steps"
KEEP_SECONDS = 30 * 24 * 3600  # a machine may change
_MOST_APART = 1.3  # two measurements


def known_row_seconds(
    measure: Callable[[], Mapping[int, float]], model: Path, how: str, env: Env
) -> Mapping[int, float]:
    """Seconds of a step by its rows, from the cache if they are there, else from `measure` (`runner/staircase.py`).

    how: in words, what they depend on besides model and machine: backend, threads, formats.
    """
    file = None if env.cache is None else env.cache / FOLDER / f"{_key(model, how)}.json"
    found = None if file is None else _read(file)
    if found is None:
        first, second = measure(), measure()
        found = {rows: min(first.get(rows, math.inf), second.get(rows, math.inf)) for rows in {**first, **second}}
        if file is not None and _agree(first, second):
            _write(file, found)
    return found


def _agree(first: Mapping[int, float], second: Mapping[int, float]) -> bool:
    """Whether two measurements say the same of rows beside one row: a machine that is busy by turns is not kept."""
    ratios = [(first[rows] / first[1]) / (second[rows] / second[1]) for rows in first.keys() & second.keys()]
    return first.keys() == second.keys() and max(max(ratio, 1 / ratio) for ratio in ratios) < _MOST_APART


def _key(model: Path, how: str) -> str:
    status = model.stat()
    words = str(model.resolve()), status.st_size, status.st_mtime_ns, stretto.__version__, _processor(), how
    return hashlib.sha256("\0".join(map(str, words)).encode()).hexdigest()[:24]


def _processor() -> str:
    """The name of the processor and how many of them this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{name} {len(os.sched_getaffinity(0))}"


def _read(file: Path) -> dict[int, float] | None:
    """What a file says; None if it is not there, old, somebody else's or no staircase."""
    try:
        status = file.stat()
        if status.st_uid != os.geteuid() or time.time() - status.st_mtime > KEEP_SECONDS:
            return None
        held = json.loads(file.read_text(encoding="utf-8"))
        found = {int(rows): float(seconds) for rows, seconds in held.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    is_sound = 1 in found and all(0 < rows < 1 << 16 and 0 < seconds < 3600 for rows, seconds in found.items())
    return found if is_sound else None


def _write(file: Path, found: Mapping[int, float]) -> None:
    """Whole or not at all; what is too old to be read goes."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for other in file.parent.iterdir():
            with suppress(OSError):  # two processes may be at it
                if time.time() - other.stat().st_mtime > KEEP_SECONDS:
                    other.unlink()
        write_whole(file, json.dumps(found).encode())
