"""The log: one JSON object per line on standard error. No prompts, no answers, no keys.

JSON in ASCII escapes control characters, so that no client can begin a line of its own or drive a terminal.
"""

import json
import logging
import sys
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

LOGGER = logging.getLogger("stretto.serve")
_MOST = 256  # characters of a text that a client chose


@dataclass(slots=True)
class Record:
    """What is known of one request, for its line in the log. arrived: on `time.monotonic`."""

    id: str
    method: str
    path: str
    arrived: float = field(default_factory=time.monotonic)
    status: int = 0
    tenant: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def write(self) -> None:
        """The line."""
        taken = time.monotonic() - self.arrived
        facts = {name: short(value) for name, value in self.facts.items()}
        line = {"id": self.id, "method": self.method, "path": short(self.path), "status": self.status}
        line |= {"tenant": self.tenant} if self.tenant else {}
        LOGGER.info("request", extra={"facts": line | {"ms": round(1e3 * taken, 1)} | facts})


def short(value: Any) -> Any:
    """A text that a client chose, at a length that a log can bear."""
    return value if not isinstance(value, str) or len(value) <= _MOST else value[:_MOST] + "..."


class Lines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def to_stream(stream: TextIO | None = None) -> logging.Handler:
    """Write the lines of this server there (default: standard error), and nowhere else."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Lines())
    for name in ("stretto.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
    LOGGER.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return handler
