"""What a server says of its engine: state, trace, how tokens came to be; and requests that want no drafts."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from scripted import saying
from serving import Running, joined, serving, tiny

from stretto.cache.ledger import Ledger, Room
from stretto.core.pages import PageGroup
from stretto.core.policy import Record
from stretto.core.sampling import Sampling
from stretto.llm.history import BOUNDS_MS, History, Span
from stretto.llm.sync import LLM
from stretto.llm.watch import IDLE, MOST_CELLS, SHARED, Watch, _pool
from stretto.serve.service import Service

LONG: dict[str, Any] = {"max_tokens": 60, "return_steps": True}


@pytest.fixture(scope="module")
def drafting(folder: Path) -> Iterator[Running]:
    """A server that always drafts four tokens, right or wrong."""
    with serving(tiny(folder, draft="ngram:nodes=4"), key="sesame") as one:
        yield one


def steps_of(events: list[Any]) -> list[dict[str, Any]]:
    found = [choice.get("stretto", {}) for event in events if event != "[DONE]" for choice in event["choices"]]
    return [one for one in found if "ids" in one]


# -- how tokens came to be ---------------------------------------------------------------------------------------------


def test_a_stream_says_how_its_tokens_came_to_be(drafting: Running) -> None:
    events = drafting.events(**LONG)
    steps = steps_of(events)
    assert "".join(text for step in steps for text in step["texts"]) == joined(events)
    assert all(len(step["ids"]) == len(step["texts"]) and 0 <= step["accepted"] <= len(step["ids"]) for step in steps)
    timings = events[-2]["timings"]
    assert sum(step["accepted"] for step in steps) == timings["draft_n_accepted"] > 0
    rejected = sum(len(step.get("rejected", [])) for step in steps)
    assert rejected + timings["draft_n_accepted"] == timings["draft_n"] > timings["draft_n_accepted"]


def test_it_says_so_only_if_it_is_asked(drafting: Running) -> None:
    assert not steps_of(drafting.events(max_tokens=60))


def test_a_request_may_forgo_drafts(drafting: Running) -> None:
    drafted, plain = steps_of(drafting.events(**LONG)), drafting.events(draft=False, **LONG)
    assert all(step["accepted"] == 0 and "rejected" not in step for step in steps_of(plain))
    assert plain[-2]["timings"]["draft_n"] == 0
    assert [i for step in drafted for i in step["ids"]] == [i for step in steps_of(plain) for i in step["ids"]]
    assert any(step["accepted"] for step in drafted)


def test_so_may_completions(drafting: Running) -> None:
    body = {"prompt": "abcabcabc", "max_tokens": 40, "temperature": 0}
    counts = [drafting.post("/v1/completions", {**body, **one}).json() for one in ({}, {"draft": False})]
    assert counts[0]["choices"][0]["text"] == counts[1]["choices"][0]["text"]
    assert counts[0]["timings"]["draft_n"] > 0 == counts[1]["timings"]["draft_n"]


def test_only_the_request_that_forgoes_drafts_has_none(folder: Path) -> None:
    llm = tiny(folder, draft="ngram:nodes=4")
    with_drafts = llm.add(llm.encode("abcabcabc"), Sampling(temperature=0, max_tokens=30), continues=True).request
    without = llm.engine.add(llm.encode("abcabcabc"), Sampling(temperature=0, max_tokens=30).resolve(), drafts=False)
    while not llm.engine.is_idle:
        llm.engine.step()
    assert with_drafts.timeline.drafted > 0 == without.timeline.drafted and with_drafts.output == without.output


def test_a_character_of_several_tokens_is_the_text_of_the_last(tmp_path: Path) -> None:
    with serving(saying(tmp_path, "aé€")) as one:  # 1, 2 and 3 bytes, each a token
        steps = steps_of(one.events(return_steps=True))
    assert [text for step in steps for text in step["texts"]] == ["a", "", "é", "", "", "€", ""]


# -- state -------------------------------------------------------------------------------------------------------------


def test_the_state_of_an_idle_server(drafting: Running) -> None:
    drafting.chat(max_tokens=40)
    state = drafting.http.get("/stretto/state").json()
    assert state["status"] == "ready" and state["model"] == "toy" and state["draft"] == "ngram:nodes=4"
    assert state["requests"] == [] and state["running"] == state["waiting"] == 0
    cache = drafting.llm.engine.runner.cache
    for pool in state["pools"]:
        assert pool["free"] == pool["total"] and pool["used"] == pool["idle"] == 0 and not any(pool["cells"])
    assert sum(pool["total"] for pool in state["pools"]) == cache.pools.num_pages
    assert sum(map(sum, state["histogram"].values())) == state["num_steps"] > 0
    assert len(state["bounds_ms"]) == len(BOUNDS_MS) and all(
        len(counts) == len(BOUNDS_MS) + 1 for counts in state["histogram"].values()
    )


@pytest.mark.parametrize("path", ["/stretto/state", "/stretto/trace"])
def test_it_needs_a_key_and_holds_no_text(drafting: Running, path: str) -> None:
    assert drafting.http.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
    drafting.chat(messages=[{"role": "user", "content": "xylophone"}], max_tokens=20, user="marimba")
    response = drafting.http.get(path)
    assert response.status_code == 200 and response.headers["cache-control"] == "no-store"
    assert "xylophone" not in response.text and "marimba" not in response.text


@pytest.fixture
def watched(folder: Path) -> tuple[LLM, Watch]:
    llm = tiny(folder, max_seqs=2)
    return llm, Watch(llm.engine)


def test_the_state_between_two_steps(watched: tuple[LLM, Watch]) -> None:
    llm, watch = watched
    for length in (40, 5, 3):
        watch.begin(llm.add([65] * length, Sampling(temperature=0, max_tokens=9), continues=True).request)
    llm.engine.step()
    llm.engine.step()
    state = watch.state()
    assert [(one.id, one.phase, one.prompt, one.output) for one in state.requests] == [
        (0, "decode", 40, 2), (1, "decode", 5, 2), (2, "waiting", 3, 0),
    ]  # fmt: skip
    assert [one.held for one in state.requests] == [41, 6, 0]  # the last token is pending
    assert [one.pages for one in state.requests] == [3, 1, 0]
    (pool,) = state.pools
    assert (pool.used, pool.idle, pool.free) == (4, 0, pool.total - 4)
    assert sorted(filter(None, pool.cells)) == [1, 1, 1, 2]
    assert (state.counts.running, state.counts.waiting, state.max_seqs) == (2, 1, 2)
    assert [(one.phase, one.seqs, one.rows, one.emitted) for one in state.steps] == [
        ("prefill", 2, 45, 2), ("decode", 2, 2, 2),
    ]  # fmt: skip


def test_cancelled_requests_leave_the_state(watched: tuple[LLM, Watch]) -> None:
    llm, watch = watched
    request = llm.add([65] * 20, Sampling(temperature=0, max_tokens=9), continues=True).request
    watch.begin(request)
    llm.engine.step()
    watch.end(request)
    llm.engine.cancel(request.rid)
    state, trace = watch.state(), watch.trace()
    assert state.requests == [] and trace.live == [] and state.pools[0].used == 0
    (span,) = [event for event in trace.events if isinstance(event, Span)]
    assert span.arrived <= span.started <= span.first_token <= span.finished and span.output == 1  # type: ignore[operator]


def test_one_who_looks_no_more_hears_no_more(watched: tuple[LLM, Watch]) -> None:
    llm, watch = watched
    watch.close()
    llm.generate("abc", Sampling(temperature=0, max_tokens=4))
    assert watch.state().num_steps == 0 and llm.engine.scheduler.listeners == []


def test_pages_of_several_requests_are_shared() -> None:
    pool = _pool("pages", "all", 6, 1, {4: [1, 2, 3], 7: [1, 2, 5]}, {6})
    assert pool.cells == [SHARED, SHARED, 5, 0, 8, IDLE] and (pool.used, pool.idle, pool.free) == (4, 1, 1)


def test_a_large_pool_has_several_places_per_cell() -> None:
    total = 3 * MOST_CELLS - 1
    pool = _pool("pages", "all", total, total - 4, {6: [2, total]}, {1, 4})
    assert pool.per_cell == 3 and len(pool.cells) == MOST_CELLS and (pool.used, pool.idle) == (2, 2)
    assert pool.cells[:3] == [7, IDLE, 0] and pool.cells[-1] == 7 and not any(pool.cells[2:-1])


def test_an_empty_pool_has_no_cells() -> None:
    assert _pool("slots", "states", 0, 0, {}, set()).cells == []


def test_prefixes_are_idle_when_their_requests_are_gone(folder: Path) -> None:
    llm = tiny(folder, prefix_cache="1MiB")
    watch = Watch(llm.engine)
    llm.generate(
        "a text that fills several pages of the cache, so that it is kept", Sampling(temperature=0, max_tokens=4)
    )
    (pool,) = watch.state().pools
    kept = llm.engine.runner.cache.ledger.blocks[0].num_idle
    assert pool.idle == kept == pool.cells.count(IDLE) > 0 and pool.used == 0 and pool.free == pool.total - kept


def test_checkpoints_of_states_are_idle_slots() -> None:
    memory = Ledger(Room(groups=(PageGroup(),), num_blocks=(9,), num_slots=5, has_slots=True))
    memory.admit(3)
    assert memory.reserve(3, 20)
    checkpoint = memory.slots.alloc()
    engine: Any = SimpleNamespace(
        scheduler=SimpleNamespace(listeners=[]), runner=SimpleNamespace(cache=SimpleNamespace(ledger=memory))
    )
    pages, slots = Watch(engine)._pools()
    assert (pages.used, pages.idle, slots.total, slots.used, slots.idle, slots.free) == (2, 0, 4, 1, 1, 2)
    assert slots.cells[memory.holdings[3].slot - 1] == 4 and slots.cells[checkpoint - 1] == IDLE  # type: ignore[operator]


# -- history -----------------------------------------------------------------------------------------------------------


def record(milliseconds: float, **changes: Any) -> Record:
    facts = {"num_seqs": 1, "num_rows": 1, "is_decode": True, "drafted": 0, "emitted": 1}
    return Record(seconds=milliseconds / 1e3, **{**facts, **changes})


def test_the_history_is_bounded_and_says_what_it_forgot() -> None:
    history = History(most=4)
    for number in range(10):
        history.step(record(1.0), float(number))
    assert [event.number for event in history.after(0)] == [7, 8, 9, 10] and history.lost(0) == 6
    assert [event.number for event in history.after(8)] == [9, 10] and history.lost(8) == 0
    assert history.after(10) == history.after(10**18) == [] and history.lost(10) == 0
    assert [step.number for step in history.latest(2)] == [9, 10] and history.num_steps == 10


def test_steps_are_counted_by_phase_and_time() -> None:
    history = History()
    history.step(record(0.25), 1.0)  # a bound belongs to the column below it
    history.step(record(0.26, is_decode=False), 2.0)
    history.step(record(1e6, drafted=3, num_rows=4, rounds=((0, 3, (1, 2)),), emitted=3), 3.0)
    history.step(record(8.0, num_steps=16, emitted=16), 4.0)
    counts = {phase: bins.counts for phase, bins in history.milliseconds.items()}
    assert counts["decode"][0] == 1 and counts["prefill"][1] == 1
    assert counts["verify"][len(BOUNDS_MS)] == 1
    assert counts["decode"][2] == 16  # 0.5 ms each, and 0.5 is the third bound
    assert history.milliseconds["decode"].sum == pytest.approx(8.25)
    assert (history.tokens.counts[:4], history.tokens.sum) == ([18, 0, 1, 0], 22.0)
    found = history.latest(9)
    assert [step.phase for step in found] == ["decode", "prefill", "verify", "decode"]
    assert (found[2].drafted, found[2].accepted, found[2].emitted) == (3, 2, 3)
    assert found[3].started == pytest.approx(3.992)
    assert history.rate(4.0, 1.5) == pytest.approx(16 / 1.5)


def test_the_metrics_count_every_step(drafting: Running) -> None:
    drafting.chat(max_tokens=40)
    steps = [one["args"] | one for one in drafting.http.get("/stretto/trace").json()["traceEvents"] if one["ph"] == "X"]
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(drafting.http.get("/metrics").text):
        for one in family.samples:
            if one.name.startswith("stretto:step_") and one.labels.get("le") in (None, "+Inf", "4.0"):
                found[one.name[13:], one.labels.get("phase", "") + one.labels.get("le", "")] = one.value
    for phase in ("prefill", "decode", "verify"):
        own = [one for one in steps if one["name"] == phase]
        assert found["time_seconds_count", phase] == found["time_seconds_bucket", phase + "+Inf"] == len(own) > 0
        assert found["time_seconds_sum", phase] == pytest.approx(sum(one["dur"] for one in own) / 1e6, rel=1e-6)
    assert found["num_tokens_sum", ""] == sum(one["rows"] for one in steps)
    assert found["num_tokens_bucket", "4.0"] == sum(one["rows"] <= 4 for one in steps)


def test_an_engine_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = saying(tmp_path, "x" * 100)
    with serving(llm) as one:
        llm.scripted.gate.close()
        asked = threading.Thread(target=one.chat)
        asked.start()
        while not llm.scripted.requests:
            time.sleep(0.001)
        monkeypatch.setattr(Service.ask, "__defaults__", (0.01,))
        refused = one.http.get("/stretto/state")
        monkeypatch.undo()
        llm.scripted.gate.open()
        asked.join(30)
        assert one.http.get("/stretto/state").json()["model"] == "toy"
    assert refused.status_code == 503 and "does not answer" in refused.json()["error"]["message"]


# -- trace -------------------------------------------------------------------------------------------------------------


def test_a_trace_holds_every_step_and_request(drafting: Running) -> None:
    before = drafting.http.get("/stretto/trace").json()["otherData"]["number"]
    lengths = [drafting.chat(max_tokens=n)["usage"]["completion_tokens"] for n in (30, 10)]
    trace = drafting.http.get("/stretto/trace", params={"after": before}).json()
    steps = [one for one in trace["traceEvents"] if one["ph"] == "X"]
    assert sum(one["args"]["emitted"] for one in steps) == sum(lengths) == 40
    assert {one["name"] for one in steps} >= {"prefill", "verify"} and all(one["dur"] > 0 for one in steps)
    assert [one["ts"] for one in steps] == sorted(one["ts"] for one in steps)
    begins = [one for one in trace["traceEvents"] if one["ph"] == "b"]
    ends = [one for one in trace["traceEvents"] if one["ph"] == "e"]
    assert [one["name"] for one in begins] == ["queue", "prefill", "decode"] * 2
    assert [(one["id"], one["name"]) for one in begins] == [(one["id"], one["name"]) for one in ends]
    assert all(b["ts"] <= e["ts"] for b, e in zip(begins, ends, strict=True))
    assert {one["args"]["output"] for one in begins} == set(lengths)
    assert all({"ph", "pid", "tid", "ts", "name"} <= set(one) for one in trace["traceEvents"])
    assert trace["otherData"]["lost"] == 0 and trace["otherData"]["number"] == before + len(steps) + 2
    json.dumps(trace, allow_nan=False)


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "9" * 19, "²"])
def test_a_number_that_is_none_is_refused(drafting: Running, after: str) -> None:
    response = drafting.http.get("/stretto/trace", params={"after": after})
    assert response.status_code == 400 and response.json()["error"]["param"] == "after"


def test_questions_wait_for_no_step_and_errors_of_one_are_its_own(drafting: Running) -> None:
    def wrong(watch: Watch) -> None:
        raise KeyError("a question")

    asked = asyncio.run_coroutine_threadsafe(drafting.service.llm.ask(wrong), drafting.loop)
    with pytest.raises(KeyError):
        asked.result(30)
    assert drafting.chat()["choices"]
