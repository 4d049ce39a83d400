"""Several models in one server: on demand, within a budget, and none while it has requests."""

import asyncio
import gc
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted import ScriptedLLM, saying
from serving import CHAT, HELLO, Running, serving, slot_of, told

from stretto import LLM
from stretto.cli import main
from stretto.cli._models import client_names, places
from stretto.core.env import read_env
from stretto.core.errors import FitError, ModelFileError, UserError
from stretto.core.settings import Settings
from stretto.serve.keep_alive import seconds_of
from stretto.serve.models import Models
from stretto.serve.slot import Limits, Slot

NAMES = ("a", "b", "c")


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Maker:
    """Makes a model that says its name, and remembers all that it made. gate: loads wait there; problem: is raised."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder / name, name
        self.folder.mkdir()
        self.made: list[weakref.ref[ScriptedLLM]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.num_loads = 0
        self.problem: Exception | None = None

    def __call__(self) -> LLM:
        self.num_loads += 1
        assert self.gate.wait(30)
        if self.problem is not None:
            raise self.problem
        llm = saying(self.folder, f"I am {self.name}.")
        self.made.append(weakref.ref(llm))
        return llm

    @property
    def num_alive(self) -> int:
        return sum(one() is not None for one in self.made)


class House:
    """A server of scripted models of one byte each."""

    def __init__(self, server: Running, makers: dict[str, Maker], clock: Clock) -> None:
        self.server, self.makers, self.clock = server, makers, clock

    def says(self, name: str | None) -> str:
        found: str = self.server.chat(model=name, max_tokens=20)["choices"][0]["message"]["content"]
        self.idle()
        return found

    def idle(self) -> None:
        """Wait until all requests have let go: a client has its answer before that."""
        self.until(lambda: not any(slot.held for slot in self.server.models.slots))

    def states(self) -> list[str]:
        return [one["status"]["value"] for one in self.server.http.get("/v1/models").json()["data"]]

    def wait(self, *states: str) -> None:
        until = time.monotonic() + 20
        while self.states() != list(states):
            assert time.monotonic() < until, self.states()
            time.sleep(0.005)

    def until(self, holds: Callable[[], Any]) -> None:
        until = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < until
            time.sleep(0.002)

    def slot(self, name: str) -> Slot:
        return self.server.models.find(name)

    def settled(self) -> None:
        """Nothing is held, nobody waits, and no model lives but those that are loaded."""
        self.until(lambda: not self.server.models.num_calls)
        for slot in self.server.models.slots:
            self.until(lambda slot=slot: not slot.held and not slot.waiters and slot.task is None)
        gc.collect()
        for slot in self.server.models.slots:
            assert self.makers[slot.service.name].num_alive == slot.service.is_loaded


@contextmanager
def house(folder: Path, limits: Limits | None = None, **options: Any) -> Iterator[House]:
    clock, makers = Clock(), {name: Maker(folder, name) for name in NAMES}
    slots = [slot_of(makers[name], name) for name in NAMES]
    with serving(slots, limits=limits, clock=clock, admin_key="root", **options) as server:
        one = House(server, makers, clock)
        yield one
        if server.service.state != "draining":
            one.settled()


def test_models_are_loaded_on_demand_and_least_recently_used_ones_leave(tmp_path: Path) -> None:
    with house(tmp_path, Limits(memory=2)) as one:
        assert one.states() == ["loaded", "unloaded", "unloaded"]
        assert one.says(None) == one.says("a") == "I am a."
        one.clock.now += 1
        assert one.says("b") == "I am b." and one.states() == ["loaded", "loaded", "unloaded"]
        one.clock.now += 1
        one.says("a")
        one.clock.now += 1
        assert one.says("c") == "I am c." and one.states() == ["loaded", "unloaded", "loaded"]
        one.clock.now += 1
        assert one.says("b") == "I am b." and one.states() == ["unloaded", "loaded", "loaded"]
        assert one.says(None) == "I am a.", "the first one is for requests without a name, loaded or not"
        assert [one.makers[name].num_loads for name in NAMES] == [2, 2, 1]


def test_most_models_at_a_time(tmp_path: Path) -> None:
    with house(tmp_path, Limits(most=1)) as one:
        for name in "abcab":
            assert one.says(name) == f"I am {name}."
            assert one.states().count("loaded") == 1


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/api/chat", "/api/show"])
def test_unknown_names_are_not_found_in_the_form_of_each_api(tmp_path: Path, path: str) -> None:
    with house(tmp_path, Limits(memory=1)) as one:
        response = one.server.post(path, {"model": "d", "messages": HELLO, "max_tokens": 3})
        if path == "/api/show":
            response = one.server.post(path, {"model": "d"})
        assert response.status_code == 404 and "no model 'd'" in told(path, response)[1]
        assert one.states() == ["loaded", "unloaded", "unloaded"]


def test_idle_models_leave(tmp_path: Path) -> None:
    with house(tmp_path, Limits(idle=60)) as one:
        one.clock.now += 50
        one.says("b")
        one.clock.now += 11
        one.wait("unloaded", "loaded", "unloaded")
        assert [m["name"] for m in one.server.http.get("/api/ps").json()["models"]] == ["b"]
        assert one.server.http.get("/health").status_code == one.server.http.get("/ready").status_code == 200
        one.clock.now += 50
        one.wait("unloaded", "unloaded", "unloaded")
        assert one.server.http.get("/health").status_code == one.server.http.get("/ready").status_code == 200
        assert one.server.http.get("/stretto/state").status_code == 503, "looking loads nothing"
        assert one.says("a") == "I am a."


def test_keep_alive_of_a_request_counts_for_its_model(tmp_path: Path) -> None:
    with house(tmp_path, Limits(idle=60)) as one:
        body = {"messages": HELLO, "stream": False}
        for name, keep in (("a", "10s"), ("b", -1), ("c", "2m")):
            assert one.server.post("/api/chat", {**body, "model": name, "keep_alive": keep}).status_code == 200
        one.idle()
        found = {m["name"]: m["expires_at"] for m in one.server.http.get("/api/ps").json()["models"]}
        assert found["b"].startswith("9999") and found["a"] < found["c"] < "9"
        one.clock.now += 11
        one.wait("unloaded", "loaded", "loaded")
        one.clock.now += 1e6
        one.wait("unloaded", "loaded", "unloaded")
        empty = {"model": "b:latest", "keep_alive": 0}
        assert one.server.post("/api/generate", empty).json()["done_reason"] == "unload"
        assert one.states() == ["unloaded"] * 3
        assert one.server.post("/api/generate", empty).json()["done_reason"] == "unload"
        assert one.makers["b"].num_loads == 1, "what is to be unloaded is not loaded for it"
        assert one.server.post("/api/generate", {"model": "b"}).json()["done_reason"] == "load"
        one.idle()
        assert one.states() == ["unloaded", "loaded", "unloaded"]
        assert one.server.post("/api/generate", {"model": "b", "keep_alive": "soon"}).status_code == 400


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, None), (0, 0), ("0", 0), (3.5, 3.5), ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("100ms", 0.1),
     (-1, float("inf")), ("-1", float("inf")), ("-1m", float("inf")), ("+2s", 2)],
)  # fmt: skip
def test_durations(given: str | float | None, seconds: float | None) -> None:
    assert seconds_of(given) == (pytest.approx(seconds) if seconds is not None else None)


def test_a_model_that_is_asked_for_at_the_start_waits_for_the_first_one(tmp_path: Path) -> None:
    makers = {name: Maker(tmp_path, name) for name in "ab"}
    makers["a"].gate.clear()

    async def scene() -> list[str]:
        models = Models([slot_of(maker, name) for name, maker in makers.items()], Limits(most=1))

        async def ask() -> None:
            async with models.use(models.find("b")) as service:
                assert service.state == "ready"

        with ExitStack() as beside:
            starting = asyncio.ensure_future(models.start(lambda _: None, beside))
            asking = asyncio.ensure_future(ask())
            assert not (await asyncio.wait({asking}, timeout=0.2))[0]
            makers["a"].gate.set()
            await asyncio.gather(starting, asking)
            found = [slot.status for slot in models.slots]
            await models.close()
        return found

    assert asyncio.run(scene()) == ["unloaded", "loaded"]


def test_waiters_share_one_load_and_a_failed_one_is_tried_again(tmp_path: Path) -> None:
    with house(tmp_path, Limits(memory=2)) as one, ThreadPoolExecutor(6) as pool:
        maker = one.makers["b"]
        maker.gate.clear()
        maker.problem = ModelFileError(f"{tmp_path}/b/x.gguf is damaged")
        one.slot("b").place = str(tmp_path / "b")
        body = {"model": "b", "messages": HELLO, "max_tokens": 20}
        asked = [pool.submit(httpx.post, one.server.url + CHAT, json=body, timeout=30) for _ in range(6)]
        one.until(lambda: len(one.slot("b").waiters) == 6)
        assert one.states() == ["loaded", "loading", "unloaded"] and one.says("a") == "I am a.", "others go on"
        maker.gate.set()
        for response in (future.result() for future in asked):
            error = response.json()["error"]
            assert response.status_code == 503 and error["code"] == "model_not_loaded"
            assert "b/x.gguf is damaged" in error["message"] and str(tmp_path) not in error["message"]
        assert maker.num_loads == 1
        maker.problem = None
        assert one.says("b") == "I am b." and maker.num_loads == 2
        maker.problem = ValueError("0x7ffe internals")
        one.server.post("/admin/models/unload", {"model": "b"}, headers={"x-api-key": "root"})
        error = one.server.post(CHAT, body).json()["error"]
        assert error["code"] == "model_not_loaded" and "internals" not in error["message"]


def test_a_model_that_never_fits_is_a_clear_error_and_nothing_leaves_for_it(tmp_path: Path) -> None:
    with house(tmp_path, Limits(memory=2)) as one:
        one.slot("b").need = 3
        response = one.server.post(CHAT, {"model": "b", "messages": HELLO})
        assert response.status_code == 503 and response.json()["error"]["code"] == "model_does_not_fit"
        assert response.headers["x-should-retry"] == "false"
        assert one.states() == ["loaded", "unloaded", "unloaded"] and one.says("a") == "I am a."


def test_a_model_with_requests_stays_until_they_are_over(tmp_path: Path) -> None:
    """And new ones of it wait behind the model that waits for its room."""
    with house(tmp_path, Limits(memory=1)) as one, ThreadPoolExecutor(3) as pool:
        llm = one.server.llm
        assert isinstance(llm, ScriptedLLM)
        llm.scripted.gate.close()
        gate = llm.scripted.gate
        del llm
        body = {"messages": HELLO, "max_tokens": 20}

        def ask(name: str) -> Any:
            return pool.submit(httpx.post, one.server.url + CHAT, json={**body, "model": name}, timeout=30)

        first = ask("a")
        one.until(lambda: one.slot("a").held)
        second = ask("b")
        one.until(lambda: one.slot("a").is_leaving)
        third = ask("a")
        one.until(lambda: one.slot("a").waiters)
        assert one.makers["b"].num_loads == 0
        gate.open()
        texts = [one.result().json()["choices"][0]["message"]["content"] for one in (first, second, third)]
        assert texts == ["I am a.", "I am b.", "I am a."]
        assert [one.makers[name].num_loads for name in "ab"] == [2, 1]


def test_random_requests_to_three_models_with_room_for_one(tmp_path: Path) -> None:
    """Every answer is what the model says alone, whoever leaves; afterwards nothing is held and one model lives."""
    rng = random.Random(7)
    with house(tmp_path, Limits(memory=1)) as one:

        async def scene() -> None:
            async with httpx.AsyncClient(base_url=one.server.url, timeout=60) as client:

                async def ask(name: str, leaves: float | None) -> None:
                    body = {"model": name, "messages": HELLO, "max_tokens": 20}
                    try:
                        async with asyncio.timeout(leaves):
                            response = await client.post(CHAT, json=body)
                    except TimeoutError:
                        return
                    assert response.status_code == 200, response.text
                    assert response.json()["choices"][0]["message"]["content"] == f"I am {name}."

                async with asyncio.TaskGroup() as group:
                    for _ in range(60):
                        leaves = rng.choice([None, None, rng.random() / 20])
                        group.create_task(ask(rng.choice(NAMES), leaves))
                        await asyncio.sleep(rng.random() / 500)

        asyncio.run(scene())
        one.settled()
        assert one.states().count("loaded") == 1 and sum(m.num_alive for m in one.makers.values()) == 1


def test_who_leaves_while_a_model_loads_leaves_nothing(tmp_path: Path) -> None:
    with house(tmp_path, Limits(memory=2)) as one:
        one.makers["b"].gate.clear()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(one.server.url + CHAT, json={"model": "b", "messages": HELLO}, timeout=0.1)
        one.until(lambda: all(waiter.done() for waiter in one.slot("b").waiters))
        one.makers["b"].gate.set()
        one.wait("loaded", "loaded", "unloaded")
        assert not one.slot("b").held


def test_draining_while_a_model_loads(tmp_path: Path) -> None:
    """Who waits for it is refused at once; the end does not wait for the load."""
    with house(tmp_path, Limits(memory=2), drain_timeout=60.0) as one, ThreadPoolExecutor(1) as pool:
        one.makers["b"].gate.clear()
        asked = pool.submit(httpx.post, one.server.url + CHAT, json={"model": "b", "messages": HELLO}, timeout=30)
        one.until(lambda: one.makers["b"].num_loads)
        one.server.loop.call_soon_threadsafe(one.server.lifecycle.end)
        response = asked.result()
        assert response.status_code == 503 and "shutting down" in response.json()["error"]["message"]
        one.makers["b"].gate.set()


def test_the_admin_loads_and_unloads(tmp_path: Path) -> None:
    with house(tmp_path) as one:
        for verb in ("load", "unload"):
            response = one.server.post(f"/admin/models/{verb}", {"model": "b"})
            assert response.status_code == 403 and response.json()["error"]["code"] == "admin_key_needed"
        admin = {"x-api-key": "root"}
        for verb, state in (("load", "loaded"), ("load", "loaded"), ("unload", "unloaded"), ("unload", "unloaded")):
            response = one.server.post(f"/admin/models/{verb}", {"model": "b"}, headers=admin)
            assert response.json() == {"id": "b", "object": f"model.{state}"}
            assert one.states() == ["loaded", state, "unloaded"]
        assert one.server.post("/admin/models/load", {"model": "x"}, headers=admin).status_code == 404
        one.slot("a").enter()
        response = one.server.post("/admin/models/unload", {"model": "a"}, headers=admin)
        assert response.status_code == 409 and response.json()["error"]["code"] == "model_busy"
        one.slot("a").leave(one.clock())


def test_what_is_told_of_a_model_that_was_unloaded(tmp_path: Path) -> None:
    with house(tmp_path, Limits(memory=1)) as one:
        before = one.server.http.get("/v1/models/a").json()
        unknown = one.server.http.get("/v1/models/b").json()
        assert unknown["capabilities"] == ["completion"] and unknown["max_model_len"] is None
        one.says("b")
        after = one.server.http.get("/v1/models/a").json()
        assert after == before | {"status": {"value": "unloaded"}} and "chat" in after["capabilities"]
        assert [m["name"] for m in one.server.http.get("/api/tags").json()["models"]] == list(NAMES)
        assert one.server.post("/api/show", {"model": "a"}).json()["template"]
        assert one.server.http.get("/stretto/state").json()["model"] == "b", "the one that is loaded"
        assert one.server.http.get("/stretto/state?model=a").json()["error"]["code"] == "model_unloaded"
        assert one.server.http.get("/stretto/state?model=x").status_code == 404


def test_metrics_are_told_apart_by_the_model(tmp_path: Path) -> None:
    with house(tmp_path) as one:
        for name in "abb":
            one.says(name)
        page = one.server.http.get("/metrics").text
        assert page.count("# TYPE stretto:request_success_total counter") == 1
        counts = [line for line in page.splitlines() if line.startswith("stretto:request_success_total{")]
        assert [(line.split('model_name="')[1][0], float(line.split()[-1])) for line in counts] == [("a", 1), ("b", 2)]
        assert 'stretto:num_requests_running{model_name="b"} 0.0' in page
        assert 'stretto:num_requests_running{model_name="c"}' not in page


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("how", ["it comes", "it fails"])
def test_a_stream_is_kept_open_while_its_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, how: str
) -> None:
    monkeypatch.setattr("stretto.serve.stream.QUIET_SECONDS", 0.02)
    with house(tmp_path) as one:
        maker = one.makers["b"]
        maker.gate.clear()
        maker.problem = ModelFileError("it is damaged") if how == "it fails" else None
        body: dict[str, Any] = {"model": "b", "stream": True, "max_tokens": 20, "messages": HELLO}
        if path == "/v1/responses":
            body = {"model": "b", "stream": True, "input": "Hello"}
        with one.server.http.stream("POST", path, json=body) as response:
            blocks = response.iter_bytes()
            early = next(blocks)
            maker.gate.set()
            late = b"".join(blocks).decode()
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        ping = b'event: ping\ndata: {"type":"ping"}\n\n' if path == "/v1/messages" else b": ping\n\n"
        assert early.replace(ping, b"") == b"" and late.endswith("\n\n")
        if how == "it comes":
            pieces = re.findall(r'"(?:content|delta)":"([^"]*)"|"text_delta","text":"([^"]*)"', late)
            assert "".join(a + b for a, b in pieces) == "I am b." and '"error":{' not in late
        elif how == "it fails":
            assert "could not be loaded: it is damaged" in late and "[DONE]" not in late
            assert late.count("data: ") == 1 + late.count("event: ping")


def test_memory_that_was_freed_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()
    monkeypatch.setattr("stretto.serve.loader.return_free_memory", lambda: calls.append(1))
    with house(tmp_path, Limits(most=1)) as one:
        one.says("b")
        assert calls == [1]


def files(folder: Path, **sizes: int) -> list[str]:
    for name, size in sizes.items():
        (folder / f"{name}.gguf").write_bytes(bytes(size))
    return [str(folder / f"{name}.gguf") for name in sizes]


def test_what_the_models_of_a_server_may_take(tmp_path: Path) -> None:
    """Without --mem, each cache is an equal part of what the largest model leaves, so that each fits alone."""
    given, env, mib = files(tmp_path, small=1 << 20, large=4 << 20), read_env(), 1 << 20
    found, limit = places(given, client_names(given, ()), Settings(), "10MiB", env)
    assert limit == 10 * mib and [place.settings.memory_bytes for place in found] == [3 * mib, 3 * mib]
    assert [place.need for place in found] == [4 * mib, 7 * mib]
    assert [place.names for place in found] == [("small.gguf",), ("large.gguf",)]
    found, _ = places(given, client_names(given, ("s", "l")), Settings(memory="2MiB"), "10MiB", env)
    assert [(place.names, place.need) for place in found] == [(("s",), 3 * mib), (("l",), 6 * mib)]
    with pytest.raises(FitError, match=r"large\.gguf needs 6\.00 MiB"):
        places(given, client_names(given, ()), Settings(memory="2MiB"), "5MiB", env)
    alone, limit = places(given[:1], client_names(given[:1], ()), Settings(), None, env)
    assert limit is None and alone[0].settings == Settings(), "one model may take what there is"
    with pytest.raises(UserError, match="names that differ"):
        client_names([given[0], given[0]], ())
    with pytest.raises(UserError, match="--served-model-name"):
        client_names(given, ("one",))


def test_further_models_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = files(tmp_path, a=2 << 20, b=2 << 20)
    assert main(["serve", *given, "--models-memory", "1MiB"]) == 4
    assert "a.gguf needs" in capsys.readouterr().err
    assert main(["serve", *given, "--models-memory", "much"]) == 2
    assert "--models-memory is 'much'" in capsys.readouterr().err
