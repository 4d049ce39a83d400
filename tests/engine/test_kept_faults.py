"""What is kept of a model and differs from what it should be is as if it were not there; two processes, and caches that
cannot be written."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starts import answers, is_warm, process, start
from test_native import GREEDY

from stretto import Sampling
from stretto.channels.dense import Dense
from stretto.convert import kept as kept_module
from stretto.convert.program_file import Blob, pack, unpack
from stretto.core.env import Env


def repacked(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """A file that says something else, with the right checksum."""

    def damage(data: bytes) -> bytes:
        document, rest = unpack(data)
        change(document)
        blob = Blob()
        blob.add(rest)
        return pack(document, blob)

    return damage


def outwards(document: dict[str, Any]) -> None:
    entry = document["program"]["calls"][0]
    entry[2][0][2] = 1 << 40  # the offset of its first pointer


def at_a_number(document: dict[str, Any]) -> None:
    document["program"]["calls"][0][2][0][0] += 4


def rows_beyond(document: dict[str, Any]) -> None:
    document["tiles"][0]["pieces"][0][3] += 1 << 20


def order_beyond(document: dict[str, Any]) -> None:
    document["orders"] = [[1 << 20]]
    document["tiles"][0]["pieces"][0][4] = 0


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "its first bytes only": lambda data: data[:20],
    "one bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "another file": lambda data: b"GGUF" + data[4:],
    "another format": repacked(lambda d: d.update(format=0)),
    "no program": repacked(lambda d: d.pop("program")),
    "an unknown operation": repacked(lambda d: d["program"]["calls"][0].__setitem__(0, "no_such_operation")),
    "a struct of another size": repacked(lambda d: d["program"]["calls"][0].__setitem__(1, "AAAA")),
    "a pointer out of its buffer": repacked(outwards),
    "a pointer where a number is": repacked(at_a_number),
    "rows beyond the file": repacked(rows_beyond),
    "rows in an order beyond them": repacked(order_beyond),
    "bytes beyond the blob": repacked(lambda d: d["tokenizer"].__setitem__(1, 1 << 40)),
    "tiles of another size": repacked(lambda d: d["tiles"][0].__setitem__("d_out", 1 << 20)),
    "an array that is not there": repacked(lambda d: d["layout"]["arrays"].pop()),
    "words in place of numbers": repacked(lambda d: d.update(head=["a", "b", "c"], max_rows="x")),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_program_is_ignored_and_made_again(folder: Path, env: Env, name: str) -> None:
    place = start(folder, env).program
    assert place is not None
    place.write_bytes(DAMAGE[name](place.read_bytes()))
    again = start(folder, env)
    assert not is_warm(again) and again.program == place
    assert is_warm(start(folder, env))


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may change."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_a_model_that_changes_is_recorded_anew(own: Path, env: Env) -> None:
    start(own, env)
    os.utime(own / "model.safetensors", ns=(1, 1))
    assert not is_warm(start(own, env))
    (own / "generation_config.json").write_text('{"temperature": 0.5}')
    changed = start(own, env)
    assert not is_warm(changed) and changed.hints == {"temperature": 0.5}
    assert is_warm(again := start(own, env)) and again.hints == {"temperature": 0.5}


def test_a_head_that_changes_at_the_same_size_and_time_is_seen(own: Path, env: Env) -> None:
    start(own, env)
    config = own / "config.json"
    status, text = config.stat(), config.read_text()
    config.write_text(text.replace("1e-05", "3e-05"))
    os.utime(config, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert config.stat().st_size == status.st_size and config.read_text() != text
    assert not is_warm(start(own, env))


def test_what_others_may_write_is_not_used(folder: Path, env: Env) -> None:
    place = start(folder, env).program
    assert place is not None and place.stat().st_mode & 0o777 == 0o600 and place.parent.stat().st_mode & 0o777 == 0o700
    for path, mode in ((place, 0o666), (place.parent, 0o777)):
        path.chmod(mode)
        assert not is_warm(start(folder, env))
        assert is_warm(start(folder, env)), "it was made again, and is private"


def test_a_cache_that_cannot_be_written_works(
    folder: Path, env: Env, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: object, **named: object) -> None:
        raise PermissionError("read-only")

    first = start(folder, env)
    monkeypatch.setattr(kept_module.os, "utime", refuse)  # as on a file system that is mounted so
    assert is_warm(second := start(folder, env))
    assert answers(second, GREEDY) == answers(first, GREEDY)
    (env.cache_dir / "programs").rename(tmp_path / "gone")
    (env.cache_dir / "programs").write_text("no folder")
    third = start(folder, env)
    assert not is_warm(third) and third.program is None and "cannot be written" in str(third.why_not_kept)
    assert answers(third, GREEDY) == answers(first, GREEDY)


def test_programs_of_other_versions_go(folder: Path, env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    place = start(folder, env).program
    assert place is not None
    monkeypatch.setattr(kept_module, "_sources", lambda: "another")
    start(folder, env)
    assert place.exists(), "two versions may be used in turn"
    os.utime(place.parent, (1, 1))
    start(folder, env, max_rows=64)
    assert not place.parent.exists()


def test_a_model_with_operations_of_the_host_is_not_kept(
    folder: Path, env: Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Dense.forward
    monkeypatch.setattr(Dense, "forward", lambda own, x, *rest: forward(own, x, *rest) + 0 * x.cumsum(1))
    llm = start(folder, env)
    assert llm.engine.runner.host_operations
    assert llm.program is None and "Python computes blocks.0" in str(llm.why_not_kept)
    assert not is_warm(start(folder, env))


def test_two_processes_that_start_at_once_are_both_right(folder: Path, env: Env) -> None:
    both = [process(folder, env, ["--raw", "abcabc", "--temp", "0"]) for _ in range(2)]
    first, second = (one.communicate(timeout=250)[0].splitlines() for one in both)
    assert first[0] == second[0] and [one.returncode for one in both] == [0, 0]
    llm = start(folder, env)
    assert is_warm(llm)
    assert llm.generate("abcabc", Sampling(temperature=0, max_tokens=8))[0].text.splitlines()[0] == first[0]
    assert not list((env.cache_dir / "programs").rglob("*.part"))
