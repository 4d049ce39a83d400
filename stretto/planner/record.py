"""Benchmark records, the format of bench/records/: what was measured, where, by which command, with every run."""

import datetime
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any


def result(quantity: str, unit: str, runs: Sequence[float], bound: float | None = None) -> dict[str, Any]:
    """One row of a record: the median of `runs` with their spread. bound: what the machine allows, if it is stated."""
    return {
        "quantity": quantity,
        "value": median(runs),
        "unit": unit,
        "median_of": len(runs),
        "spread": [min(runs), max(runs)],
        "bound": bound,
    }


def as_record(
    name: str,
    command: str,
    machine: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    samples: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """A record of today and of this checkout, ready for JSON. samples: every run, by quantity."""
    return {
        "name": name,
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "machine": dict(machine),
        "command": command,
        "results": list(results),
        "samples": dict(samples),
    }


def _commit() -> str:
    """The commit of the checkout this package runs from, or its version."""
    folder = Path(__file__).parents[2]
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return f"version {version('stretto')}"
    return done.stdout.strip()
