"""Prefixes in files of a server: for admins, by name, for the key that they say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Running, serving, tiny
from test_served_prefixes import LONG, ask

from stretto.serve.app import Access

SAVE, LOAD = "/admin/prefix/save", "/admin/prefix/load"
ADMIN = {"x-api-key": "root"}
ACCESS = Access(keys=("aaa", "bbb"), admin_keys=("root",))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefixes")


@pytest.fixture(scope="module")
def first(folder: Path, place: Path) -> Iterator[Running]:
    with serving(tiny(folder), access=ACCESS, prefix_dir=place) as one:
        yield one


def post(one: Running, path: str, status: int = 200, headers: dict[str, str] = ADMIN, **body: Any) -> dict[str, Any]:
    found = one.post(path, body, headers=headers)
    assert found.status_code == status, found.text
    return dict(found.json())


def test_a_later_server_reads_what_an_earlier_one_saved(first: Running, folder: Path, place: Path) -> None:
    count = post(first, SAVE, name="rules", prompt=LONG)["tokens"]
    assert count == 64, "through torch, whole chunks"
    assert [one.name for one in place.iterdir()] == ["rules.safetensors"]
    cold, text = ask(first, "aaa", LONG + "one")
    assert cold == 0, "it was read for the admin"
    with serving(tiny(folder), access=ACCESS, prefix_dir=place) as later:
        assert post(later, LOAD, name="rules", tenant="key-1") == {
            "object": "prefix.loaded", "name": "rules", "tokens": count
        }  # fmt: skip
        assert ask(later, "bbb", LONG + "one") == (0, text), "it is another key's"
        assert ask(later, "aaa", LONG + "one") == (count, text)
        assert ask(later, "aaa", LONG + "two", cache_salt="pepper")[0] == 0
        post(later, LOAD, name="rules", tenant="key-1", cache_salt="salt")
        assert ask(later, "aaa", LONG + "two", cache_salt="salt")[0] == count
        later.llm.engine.runner.cache.check()


def test_conversations_are_saved_too(first: Running) -> None:
    found = post(first, SAVE, name="chat", messages=[{"role": "system", "content": LONG}], add_generation_prompt=False)
    assert found["tokens"] == 64


@pytest.mark.parametrize("name", ["../rules", "/rules", "a/b", "a\\b", ".rules", "rules\n", "", "r\0", "x" * 101, "é"])
def test_names_are_no_paths(first: Running, place: Path, name: str) -> None:
    before = sorted(place.parent.rglob("*"))
    assert post(first, SAVE, 400, name=name, prompt=LONG)["error"]["type"] == "invalid_request_error"
    post(first, LOAD, 400, name=name)
    assert sorted(place.parent.rglob("*")) == before


def test_only_admins_may(first: Running, folder: Path) -> None:
    for path in (SAVE, LOAD):
        post(first, path, 403, headers={"x-api-key": "aaa"}, name="rules", prompt=LONG)
        post(first, path, 401, headers={"x-api-key": "wrong"}, name="rules", prompt=LONG)
    with serving(tiny(folder), admin_key="root") as closed:
        assert "--prefix-dir" in post(closed, LOAD, 403, name="rules")["error"]["message"]


def test_what_cannot_be_loaded_or_saved_is_told_without_the_folder(first: Running, place: Path) -> None:
    assert post(first, LOAD, 404, name="nobody")["error"]["code"] == "prefix_not_found"
    (place / "bad.safetensors").write_bytes(b"\x08" + bytes(300))
    for body in ({"name": "bad"}, {"name": "bad", "tenant": "key-1"}):
        error = post(first, LOAD, 400, **body)["error"]
        assert error["code"] == "prefix_refused" and str(place) not in error["message"]
    post(first, SAVE, 400, name="x")
    post(first, SAVE, 400, name="x", prompt=LONG, messages=[{"role": "user", "content": "x"}])
    post(first, SAVE, 400, name="x", prompt=[])
    post(first, SAVE, 400, name="x", prompt="x" * 5000)
    (place / "taken.safetensors").mkdir()
    error = post(first, SAVE, 500, name="taken", prompt=LONG)["error"]
    assert error["code"] == "prefix_not_written" and str(place) not in error["message"]
    assert ask(first, "bbb", LONG + "one")[1]


def test_what_does_not_fit_is_refused(folder: Path, place: Path, first: Running) -> None:
    post(first, SAVE, name="big", prompt=LONG)
    with serving(tiny(folder, prefix_cache="1KiB"), admin_key="root", prefix_dir=place) as small:
        assert post(small, LOAD, 503, name="big")["error"]["code"] == "no_room"
