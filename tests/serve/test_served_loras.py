"""Adapters of a server: models to clients, loaded and unloaded by the admin alone, from one folder."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loras import linears, random_terms, theirs_of, write_peft
from serving import COMPLETIONS, Running, serving, slot_of, tiny

from stretto import Sampling

ADMIN = {"authorization": "Bearer admin"}
LOAD, UNLOAD = "/admin/lora/load", "/admin/lora/unload"
GREEDY = Sampling(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def shelf(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two adapters, a damaged one, and one beside it that nobody may name."""
    root = tmp_path_factory.mktemp("root")
    shapes = {path: tuple(module.weight.shape) for path, module in linears(theirs_of(folder)).items()}
    for number, name in enumerate(("one", "two")):
        write_peft(root / "shelf" / name, random_terms(shapes, seed=number, size=0.5))  # type: ignore[arg-type]
    write_peft(root / "shelf" / "damaged", {}, r=0)
    write_peft(root / "secret", random_terms(shapes, seed=7))  # type: ignore[arg-type]
    return root / "shelf"


@pytest.fixture(scope="module")
def texts(folder: Path, shelf: Path) -> dict[str, str]:
    """What the model says by itself, and with each adapter, alone in an engine."""
    llm = tiny(folder, loras={name: shelf / name for name in ("one", "two")})
    found = {name or "toy": llm.generate("abc", GREEDY, lora=name)[0].text for name in (None, "one", "two")}
    assert len(set(found.values())) == 3, "adapters change the text"
    return found


@pytest.fixture(scope="module")
def running(folder: Path, shelf: Path) -> Iterator[Running]:
    llm = tiny(folder, loras={"one": shelf / "one"}, max_loras=2)
    with serving(llm, key="user", admin_key="admin", lora_dir=shelf) as one:
        yield one


def say(one: Running, model: str) -> dict[str, Any]:
    body = {"model": model, "prompt": "abc", "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    found: dict[str, Any] = one.post(COMPLETIONS, body).json()
    return found


def text_of(one: Running, model: str) -> str:
    answer = say(one, model)
    assert answer["model"] == model
    return str(answer["choices"][0]["text"])


def names(one: Running) -> dict[str, str | None]:
    return {card["id"]: card["parent"] for card in one.http.get("/v1/models").json()["data"]}


def test_an_adapter_embeds(running: Running, folder: Path, shelf: Path) -> None:
    llm = tiny(folder, loras={"one": shelf / "one"})
    want = {"toy": llm.embed("abc").numpy(), "one": llm.embed("abc", lora="one").numpy()}
    assert abs(want["toy"] - want["one"]).max() > 0.01
    for name, vectors in want.items():
        answer = running.post("/v1/embeddings", {"model": name, "input": "abc"}).json()
        assert answer["model"] == name and answer["data"][0]["embedding"] == vectors[0].tolist()


def test_an_adapter_is_a_model_and_comes_and_goes(running: Running, texts: dict[str, str]) -> None:
    assert names(running) == {"toy": None, "one": "toy"}
    assert text_of(running, "one") == texts["one"] and text_of(running, "toy") == texts["toy"]
    assert say(running, "two")["error"]["code"] == "model_not_found"
    loaded = running.post(LOAD, {"name": "mine", "file": "two"}, headers=ADMIN)
    assert loaded.json() == {"id": "mine", "object": "lora.loaded", "parent": "toy"}
    assert names(running) == {"toy": None, "one": "toy", "mine": "toy"}
    said: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda name=name: said.update({name: text_of(running, name)}))  # type: ignore[misc]
        for name in ("toy", "one", "mine")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {"toy": texts["toy"], "one": texts["one"], "mine": texts["two"]}
    full = running.post(LOAD, {"name": "third", "file": "two"}, headers=ADMIN)
    assert full.status_code == 400 and "no room" in full.json()["error"]["message"]
    again = running.post(LOAD, {"name": "mine", "file": "one"}, headers=ADMIN)
    assert again.status_code == 200 and text_of(running, "mine") == texts["one"]
    gone = running.post(UNLOAD, {"name": "mine"}, headers=ADMIN).json()
    assert gone == {"id": "mine", "object": "lora.unloaded", "running": 0}
    assert say(running, "mine")["error"]["code"] == "model_not_found"
    assert running.post(UNLOAD, {"name": "mine"}, headers=ADMIN).status_code == 404


def test_every_api_takes_the_name_of_an_adapter(running: Running) -> None:
    hello = [{"role": "user", "content": "Hello"}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": hello, "max_tokens": 4},
        "/v1/responses": {"input": "Hello", "max_output_tokens": 4},
        "/v1/messages": {"messages": hello, "max_tokens": 4},
        "/api/chat": {"messages": hello, "stream": False, "options": {"num_predict": 4}},
        "/api/generate": {"prompt": "Hello", "raw": True, "stream": False, "options": {"num_predict": 4}},
    }
    for path, body in bodies.items():
        answer = running.post(path, {"model": "one", "temperature": 0, **body})
        assert answer.status_code == 200 and answer.json()["model"] == "one", (path, answer.text)
    assert [one["name"] for one in running.http.get("/api/tags").json()["models"]] == ["toy", "one"]


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
def test_only_the_admin_may(running: Running, path: str) -> None:
    body = {"name": "one", "file": "two"}
    assert running.post(path, body).status_code == 403
    assert running.post(path, body, headers={"authorization": "Bearer wrong"}).status_code in (401, 403)
    assert names(running) == {"toy": None, "one": "toy"}


@pytest.mark.parametrize("file", ["../secret", "..", ".", "/etc", "one/../../secret", "\\one", "a\nb", ".hidden"])
def test_paths_are_no_names(running: Running, file: str) -> None:
    answer = running.post(LOAD, {"name": "x", "file": file}, headers=ADMIN)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "file"


def test_what_cannot_be_loaded_leaves_all_as_it_was(running: Running, texts: dict[str, str]) -> None:
    for body, status in (
        ({"name": "x", "file": "nothing"}, 404),
        ({"name": "x", "file": "damaged"}, 400),
        ({"name": "one", "file": "damaged"}, 400),
        ({"name": "toy", "file": "two"}, 400),
        ({"name": " x", "file": "two"}, 400),
        ({"name": "", "file": "two"}, 400),
        ({"file": "two"}, 400),
    ):
        assert running.post(LOAD, body, headers=ADMIN).status_code == status, body
    assert names(running) == {"toy": None, "one": "toy"} and text_of(running, "one") == texts["one"]


def test_a_server_without_a_folder_or_room_says_so(folder: Path, shelf: Path) -> None:
    with serving(tiny(folder), key="user", admin_key="admin") as one:
        answer = one.post(LOAD, {"name": "x", "file": "two"}, headers=ADMIN)
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "no_lora_dir"
    with serving(tiny(folder), key="user", admin_key="admin", lora_dir=shelf) as one:
        answer = one.post(LOAD, {"name": "x", "file": "two"}, headers=ADMIN)
        assert answer.status_code == 400 and "--max-loras" in json.dumps(answer.json())


def test_adapters_of_several_models(folder: Path, shelf: Path, texts: dict[str, str]) -> None:
    """Each belongs to one model: it goes with it, and those of the start come back with it."""
    slots = [
        slot_of(lambda: tiny(folder, loras={"one": shelf / "one"}, max_loras=2), lora_dir=shelf, loras=("one",)),
        slot_of(lambda: tiny(folder, max_loras=1), "other", lora_dir=shelf),
    ]
    with serving(slots, admin_key="admin") as one:
        assert names(one) == {"toy": None, "one": "toy", "other": None}
        for taken, model in (("other", "toy"), ("other", None), ("one", "other"), ("toy", "other")):
            body = {"name": taken, "file": "two", "model": model}
            assert one.post(LOAD, body, headers=ADMIN).json()["error"]["param"] == "name", body
        loaded = one.post(LOAD, {"name": "mine", "file": "two", "model": "other"}, headers=ADMIN)
        assert loaded.json() == {"id": "mine", "object": "lora.loaded", "parent": "other"}
        assert one.post(LOAD, {"name": "late", "file": "two"}, headers=ADMIN).json()["parent"] == "toy"
        all_names = {"toy": None, "one": "toy", "late": "toy", "other": None, "mine": "other"}
        assert names(one) == all_names
        assert [text_of(one, name) for name in ("one", "mine", "late")] == [texts["one"], texts["two"], texts["two"]]
        assert one.post(UNLOAD, {"name": "mine"}, headers=ADMIN).status_code == 404, "it is not the first model's"
        for model in ("toy", "other"):
            assert one.post("/admin/models/unload", {"model": model}, headers=ADMIN).status_code == 200
        assert names(one) == {"toy": None, "one": "toy", "other": None}
        assert say(one, "mine")["error"]["code"] == say(one, "late")["error"]["code"] == "model_not_found"
        assert text_of(one, "one") == texts["one"] and text_of(one, "other") == texts["toy"]
