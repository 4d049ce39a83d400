"""`stretto trace`: the steps and requests of a server for a while, as a file for ui.perfetto.dev or chrome://tracing."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stretto.cli._server import DEFAULT_URL, Server
from stretto.cli._terminal import note, print_json
from stretto.core.errors import UserError
from stretto.core.files import write_whole
from stretto.core.option import option

EXAMPLES = ("stretto trace --seconds 10 --out trace.json", "stretto trace --url http://10.0.0.7:8000 --seconds 60")
EVERY = 1.0  # seconds between two looks; the server remembers thousands of steps
LATEST = 10**17  # no event has this number yet


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of `stretto trace`."""

    url: str = option("address of the server", default=DEFAULT_URL, metavar="URL")
    api_key: str = option("key of the server (default: STRETTO_API_KEY)", default="", metavar="KEY")
    seconds: float = option("how long to record; Ctrl-C ends it early", default=10.0, low=0, high=86400)
    out: Path = option("file to write", default=Path("trace.json"))
    json: bool = option("print one JSON object: what was written", default=False)


def run(options: Options) -> int:
    """Record, then write."""
    if not options.out.parent.is_dir():
        raise UserError(f"--out {options.out}: there is no folder {options.out.parent}")
    recording = Recording(Server(options.url, options.api_key))
    note(f"recording {options.url} for {options.seconds:g} s")
    until, code = time.monotonic() + options.seconds, 0
    try:
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(EVERY, left))
            recording.look()
    except KeyboardInterrupt:
        code = 130
    recording.look()
    facts = {"out": str(options.out), "steps": recording.num_steps, "requests": recording.num_requests,
             "lost": recording.lost}  # fmt: skip
    write_whole(options.out, json.dumps(recording.whole).encode())
    lost = f", {recording.lost} events lost" if recording.lost else ""
    note(f"steps: {facts['steps']}, requests: {facts['requests']}, in {options.out}{lost}; open it in ui.perfetto.dev")
    if options.json:
        print_json(facts)
    return code


class Recording:
    """What a server says, from now on, joined. Requests that go on are those of the latest look. lost: events that the
    server forgot between two looks."""

    def __init__(self, server: Server) -> None:
        self._server, self._events, self.lost = server, list[dict[str, Any]](), 0
        self._latest = server.get(f"/stretto/trace?after={LATEST}")

    def look(self) -> None:
        """Ask for what is new."""
        found = self._server.get(f"/stretto/trace?after={self._latest['otherData']['number']}")
        self._events += [one for one in found["traceEvents"] if one["ph"] != "M" and not _is_live(one)]
        self.lost += found["otherData"]["lost"]
        self._latest = found

    @property
    def whole(self) -> dict[str, Any]:
        """The file."""
        latest = self._latest
        others = [one for one in latest["traceEvents"] if one["ph"] == "M" or _is_live(one)]
        about = {**latest["otherData"], "lost": self.lost}
        return {**latest, "otherData": about, "traceEvents": [*others, *self._events]}

    @property
    def num_steps(self) -> int:
        """Steps in the file; plain ones that ran as one count once."""
        return sum(one["ph"] == "X" for one in self._events)

    @property
    def num_requests(self) -> int:
        """Requests in the file, those that go on included."""
        return len({one["id"] for one in self.whole["traceEvents"] if one["ph"] == "b"})


def _is_live(event: dict[str, Any]) -> bool:
    return bool(event.get("args", {}).get("live"))
