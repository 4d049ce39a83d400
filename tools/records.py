"""Benchmark records: the JSON files of bench/records/, read strictly. A number without a record is not shown.

    {"name": str, "date": "YYYY-MM-DD", "commit": str, "machine": {"cpu": str, "cores": int, ...}, "command": str,
     "results": [{"quantity": str, "value": float, "unit": str, "median_of": int, "spread": [low, high],
                  "bound": float or null}],
     "samples": {...}}

`value` is the median of `median_of` runs, `spread` its lowest and highest run, `bound` what the machine allows at best
in the same unit (null: no bound is stated). `samples` holds every run.
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FIELDS = {"name", "date", "commit", "machine", "command", "results", "samples"}
_RESULT_FIELDS = {"quantity", "value", "unit", "median_of", "spread", "bound"}
_MACHINE_SHOWN = ("cpu", "cores", "gpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One measured quantity."""

    quantity: str
    value: float
    unit: str
    median_of: int
    spread: tuple[float, float]
    bound: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One file of bench/records/."""

    name: str
    date: str
    commit: str
    machine: dict[str, Any]
    command: str
    results: tuple[Result, ...]
    samples: dict[str, Any]

    @property
    def kind(self) -> str:
        """The kind of CPU that it belongs to; empty where records are not told apart by it."""
        return str(self.machine.get("kind", ""))

    @property
    def where(self) -> str:
        """The machine in a few words."""
        known = [(key, self.machine.get(key)) for key in _MACHINE_SHOWN]
        return ", ".join(f"{value} cores" if key == "cores" else str(value) for key, value in known if value)


def read_records(folder: Path) -> list[Record]:
    """Every record of a folder, in the order of file names. Raises ValueError with the file that is malformed."""
    found: list[Record] = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(parse(json.loads(path.read_text(encoding="utf-8"))))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a benchmark record: {error}") from error
    return found


def parse(data: dict[str, Any]) -> Record:
    """A record from its JSON object. Raises ValueError for unknown or missing fields and impossible values."""
    _require(data, _FIELDS, "record")
    datetime.date.fromisoformat(data["date"])
    results = tuple(_parse_result(item) for item in data["results"])
    return Record(**{**data, "results": results})


def newest(records: Sequence[Record]) -> list[Record]:
    """The last record of every name and kind (by date, then file name), in the order of both."""
    last: dict[tuple[str, str], Record] = {}
    for record in sorted(records, key=lambda record: record.date):
        last[record.name, record.kind] = record
    return [last[key] for key in sorted(last)]


def _parse_result(item: dict[str, Any]) -> Result:
    _require(item, _RESULT_FIELDS, "result")
    low, high = item["spread"]
    if not low <= item["value"] <= high or item["median_of"] < 1:
        raise ValueError(f"{item['quantity']}: {item['value']} is no median of runs from {low} to {high}")
    return Result(**{**item, "spread": (low, high)})


def _require(data: dict[str, Any], names: set[str], what: str) -> None:
    if set(data) != names:
        raise ValueError(f"a {what} has the fields {sorted(names)}, not {sorted(data)}")
