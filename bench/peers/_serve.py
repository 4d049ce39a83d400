"""What every worker has in common: one JSON object per line in, one out, and the clock of one generation.

    {"op": "load", "model": PATH, "threads": 2, "options": {...}} -> {"seconds": ..., "version": ..., "settings": ...}
    {"op": "next", "ids": [...]}                                  -> {"token": ...}
    {"op": "decode", "ids": [...], "new": 128}                    -> {"first_s": ..., "total_s": ..., "tokens": ...}
    {"op": "batch", "prompts": [[...], ...], "new": 128}          -> {"total_s": ..., "tokens": [[...], ...]}
    {"op": "quit"}

All are greedy and do not stop at end-of-text tokens. An answer with "error" says why an operation failed. Standard
library only: each worker runs in an environment of its own. Whatever a library prints goes to stderr, since answers
own the real stdout.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

Ids = list[int]
Emit = Callable[[], None]


class Peer(Protocol):
    """One system under test."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        """Make ready to generate; returns at least `version` and `settings`, what a reader needs to repeat it."""

    def generate(self, prompts: list[Ids], new: int, emit: Emit) -> list[Ids]:
        """Exactly `new` greedy tokens for each prompt, all at once. Calls `emit` when the first token is there."""


def serve(make: Callable[[], Peer]) -> None:
    """Answer until stdin ends. make: builds the peer, and imports its library, so that loading includes imports."""
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
        return {"token": peer.generate([request["ids"]], 1, lambda: None)[0][0]}
    if op == "decode":
        tokens, first_s, total_s = _timed(peer, [request["ids"]], request["new"])
        return {"first_s": first_s, "total_s": total_s, "tokens": tokens[0]}
    if op == "batch":
        tokens, _, total_s = _timed(peer, request["prompts"], request["new"])
        return {"total_s": total_s, "tokens": tokens}
    raise ValueError(f"unknown operation {op!r}")


def _timed(peer: Peer, prompts: list[Ids], new: int) -> tuple[list[Ids], float, float]:
    """(tokens, seconds to the first token, seconds to the last), on the same clock."""
    first: list[float] = []
    started = time.perf_counter()
    tokens = peer.generate(prompts, new, lambda: first.append(time.perf_counter()))
    ended = time.perf_counter()
    if [len(row) for row in tokens] != [new] * len(prompts):
        raise ValueError(f"asked for {new} tokens each, got {[len(row) for row in tokens]}")
    return tokens, (first[0] if first else ended) - started, ended - started
