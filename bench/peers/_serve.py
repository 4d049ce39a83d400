"""What every worker has in common: one JSON object per line in, one out, and the clock of one generation.

    {"op": "load", "model": PATH, "threads": 2, "options": {...}} -> {"seconds": ..., "version": ..., "settings": ...}
    {"op": "next", "ids": [...]}                                  -> {"token": ...}
    {"op": "decode", "ids": [...], "new": 128}                    -> {"first_s": ..., "total_s": ..., "tokens": ...}
    {"op": "batch", "prompts": [[...], ...], "new": 128}          -> {"total_s": ..., "tokens": [[...], ...]}
    {"op": "rows", "ids": [...], "rows": 16, "repeat": 20}        -> {"seconds": [...]}: steps that verify so many rows
    {"op": "quit"}

All are greedy and do not stop at end-of-text tokens. An answer with "error" says why an operation failed. Standard
library only: each worker runs in an environment of its own. Whatever a library prints goes to stderr, since answers
own the real stdout. `python WORKER once JSON` loads, says one token and ends: {"model", "threads", "options", "ids"}.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol, cast

Ids = list[int]
Emit = Callable[..., None]  # with the time of the first token on this clock, where a system tells it later


class Peer(Protocol):
    """One system under test."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        """Make ready to generate; returns at least `version` and `settings`, what a reader needs to repeat it."""

    def generate(self, prompts: list[Ids], new: int, emit: Emit) -> list[Ids]:
        """Exactly `new` greedy tokens for each prompt, all at once. Calls `emit` when the first token is there."""


class RowsPeer(Peer, Protocol):
    """A system whose step of many rows of one sequence can be timed by itself."""

    def rows(self, ids: Ids, rows: int, repeat: int) -> list[float]:
        """Seconds of steps in which `rows` rows after the text `ids` are computed, each up to its next token."""


def serve(make: Callable[[], Peer]) -> None:
    """Answer until stdin ends. make: builds the peer, and imports its library, so that loading includes imports."""
    if sys.argv[1:2] == ["once"]:
        request, one = json.loads(sys.argv[2]), make()
        one.load(request["model"], request["threads"], request["options"])
        print(one.generate([request["ids"]], 1, lambda at=None: None))
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "quit":
            break
        try:
            if request["op"] == "load":
                started = time.perf_counter()
                peer = make()
                answer = peer.load(request["model"], request["threads"], request["options"])
                answer["seconds"] = time.perf_counter() - started
            else:
                assert peer is not None, "load comes first"
                answer = _answer(peer, request)
        except Exception as error:  # the border of the process: whatever went wrong is the answer
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    op = request["op"]
    if op == "next":
        return {"token": peer.generate([request["ids"]], 1, lambda at=None: None)[0][0]}
    if op == "decode":
        tokens, first_s, total_s = _timed(peer, [request["ids"]], request["new"])
        return {"first_s": first_s, "total_s": total_s, "tokens": tokens[0]}
    if op == "batch":
        tokens, _, total_s = _timed(peer, request["prompts"], request["new"])
        return {"total_s": total_s, "tokens": tokens}
    if op == "rows":
        return {"seconds": cast(RowsPeer, peer).rows(request["ids"], request["rows"], request["repeat"])}
    raise ValueError(f"unknown operation {op!r}")


def _timed(peer: Peer, prompts: list[Ids], new: int) -> tuple[list[Ids], float, float]:
    """(tokens, seconds to the first token, seconds to the last), on the same clock."""
    first: list[float] = []
    started = time.perf_counter()
    tokens = peer.generate(prompts, new, lambda at=None: first.append(time.perf_counter() if at is None else at))
    ended = time.perf_counter()
    if [len(row) for row in tokens] != [new] * len(prompts):
        raise ValueError(f"asked for {new} tokens each, got {[len(row) for row in tokens]}")
    return tokens, (first[0] if first else ended) - started, ended - started
