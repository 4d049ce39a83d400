"""Benchmark records, the format of bench/records/: what was measured, where, how, and every sample."""

import datetime
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from stretto.core.costs import Machine


def as_record(
    name: str, words: Sequence[str], samples: dict[str, list[float]], bounds: dict[str, float], machine: Machine
) -> dict[str, Any]:
    """A record of tokens/s. words: the command line; samples: every run, by quantity; bounds: by quantity."""
    from stretto.engine.measure import describe_machine

    def result(quantity: str, runs: Sequence[float]) -> dict[str, Any]:
        return {
            "quantity": quantity,
            "value": median(runs),
            "unit": "tokens/s",
            "median_of": len(runs),
            "spread": [min(runs), max(runs)],
            "bound": bounds[quantity],
        }

    return {
        "name": name,
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "machine": {**describe_machine(), **asdict(machine)},
        "command": shlex.join(["stretto", *words]),
        "results": [result(quantity, runs) for quantity, runs in samples.items()],
        "samples": samples,
    }


def _commit() -> str:
    """The commit of the checkout this package runs from, or its version."""
    import stretto

    folder = Path(stretto.__file__).parent.parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return f"version {stretto.__version__}"
    return done.stdout.strip()
