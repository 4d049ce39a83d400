"""`/stretto/state` and `/stretto/trace`: what the engine is doing, and what it did lately, without texts."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.types import ASGIApp, Scope

import stretto
from stretto.llm.history import Span, Step
from stretto.llm.watch import Trace, Watch
from stretto.serve.call import Call
from stretto.serve.errors import invalid
from stretto.serve.json import Json, encode

_STEPS, _REQUESTS = 1, 2  # process numbers of a trace: rows of its picture


async def state(call: Call, scope: Scope) -> ASGIApp:
    """The engine between two of its steps: `stretto.llm.watch.State`, and what is served."""
    service = call.service
    llm = service.llm
    found = msgspec.to_builtins(await service.ask(Watch.state))
    counts = found.pop("counts")
    about = {
        "version": stretto.__version__,
        "model": service.name,
        "status": service.state,
        "backend": llm.llm.backend_choice.name,
        "draft": _named(llm.llm.settings.draft),
        "context": service.context,
        "unix_time": time.time(),
    }
    return Json({**about, **counts, **found}, headers={"cache-control": "no-store"})


async def trace(call: Call, scope: Scope) -> ASGIApp:
    """Steps and requests as Chrome trace events, for ui.perfetto.dev. `?after=N`: only what came behind event N."""
    text = QueryParams(scope["query_string"]).get("after", "0")
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise invalid("after: a number is expected", "after")
    llm, name, now = call.service.llm, call.service.name, time.time()
    found = await call.service.ask(partial(Watch.trace, after=int(text)))
    written = await llm.offload(lambda: encode(chrome(found, name, now)))  # thousands of steps: streams must not wait
    return Response(written, media_type="application/json", headers={"cache-control": "no-store"})


def chrome(trace: Trace, model: str, unix_time: float) -> dict[str, Any]:
    """Chrome's trace format. Microseconds on the engine's clock; `otherData` says which Unix time `now_us` was, the
    number of the latest event, and how many were forgotten. Spans of requests that go on have `args.live`."""
    events = [_meta(_STEPS, f"engine of {model}"), _meta(_REQUESTS, "requests")]
    for event in trace.events:
        events += _step(event) if isinstance(event, Step) else _spans(event, is_live=False)
    for span in trace.live:
        events += _spans(span, is_live=True)
    other = {"number": trace.number, "lost": trace.lost, "now_us": _us(trace.now), "unix_time": unix_time}
    return {"displayTimeUnit": "ms", "otherData": {"producer": f"stretto {stretto.__version__}", **other},
            "traceEvents": events}  # fmt: skip


def _step(step: Step) -> Iterator[dict[str, Any]]:
    args = {"number": step.number, "seqs": step.seqs, "rows": step.rows, "drafted": step.drafted,
            "accepted": step.accepted, "emitted": step.emitted, "num_steps": step.num_steps}  # fmt: skip
    at = {"pid": _STEPS, "tid": 1, "ts": _us(step.started)}
    yield {"ph": "X", "cat": "step", "name": step.phase, **at, "dur": _us(step.seconds), "args": args}
    yield {"ph": "C", "name": "batch", **at, "args": {"seqs": step.seqs, "rows": step.rows}}
    yield {"ph": "C", "name": "drafts", **at, "args": {"drafted": step.drafted, "accepted": step.accepted}}


def _spans(span: Span, *, is_live: bool) -> Iterator[dict[str, Any]]:
    args = {"rid": span.rid, "prompt": span.prompt, "cached": span.cached, "output": span.output,
            "drafted": span.drafted, "accepted": span.accepted, "preemptions": span.preemptions,
            "live": is_live}  # fmt: skip
    times = [span.arrived, span.started, span.first_token, span.finished]
    for number, name in enumerate(("queue", "prefill", "decode")):
        begin, end = times[number], next((t for t in times[number + 1 :] if t is not None), span.finished)
        if begin is not None:
            at = {"cat": "request", "id": span.rid, "pid": _REQUESTS, "tid": 1, "name": name}
            yield {"ph": "b", **at, "ts": _us(begin), "args": args}
            yield {"ph": "e", **at, "ts": _us(max(begin, end)), "args": {"live": is_live}}


def _meta(pid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "ts": 0, "args": {"name": name}}


def _us(seconds: float) -> float:
    return round(1e6 * seconds, 3)


def _named(value: object) -> str:
    return value if isinstance(value, str) else type(value).__name__.lower()
