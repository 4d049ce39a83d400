"""What rows cost is measured without a trace in the engine, kept, and not believed where it is nonsense."""

import errno
import json
import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from drafters import Oracle
from test_native import engine as native_engine
from test_native import tiled
from toy import finish, plain_decode, toy_engine, toy_lm

from stretto.core.costs import verified_rows
from stretto.core.env import read_env
from stretto.core.files import write_whole
from stretto.core.sampling import Sampling
from stretto.drafters.ngram import Config
from stretto.engine.engine import Engine
from stretto.engine.policies.draft.gain import Gain
from stretto.engine.scheduler import Policies
from stretto.llm.step_costs import FOLDER, KEEP_SECONDS, known_row_seconds
from stretto.models.lm import LM
from stretto.runner.staircase import ROWS, row_seconds

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 3, 1, 4, 1, 5]
NUM_TOKENS = 40


@pytest.fixture(scope="module")
def lm() -> LM:
    return toy_lm(["gated_delta", "attention", "mamba2"], seed=3)


@pytest.fixture(params=["torch", "native"])
def make(request: pytest.FixtureRequest, lm: LM) -> Callable[..., Engine]:
    if request.param == "torch":
        return lambda **options: toy_engine(lm, **options)
    tiles = tiled(lm)
    return lambda **options: native_engine(tiles, **options)


def clock_of(ticks: float) -> Callable[[], float]:
    """Every reading is so many seconds after the one before."""
    readings = count()
    return lambda: ticks * next(readings)


def test_measuring_leaves_nothing_behind(make: Callable[..., Engine], lm: LM) -> None:
    one = make()
    free = one.runner.cache.free_blocks, one.runner.cache.free_slots
    found = row_seconds(one.runner, budget=1e9, rounds=2)
    assert set(found) == set(ROWS) and min(found.values()) > 0
    one.runner.cache.check()
    assert (one.runner.cache.free_blocks, one.runner.cache.free_slots) == free
    one.add(PROMPT, Sampling(temperature=0, max_tokens=NUM_TOKENS).resolve())
    assert finish(one) == {0: plain_decode(lm, PROMPT, NUM_TOKENS)}


def test_a_budget_that_is_spent_leaves_out_long_steps(make: Callable[..., Engine]) -> None:
    assert row_seconds(make().runner, budget=0.0, clock=clock_of(1.0)) == {1: 1.0}
    few = row_seconds(make().runner, budget=7.0, clock=clock_of(1.0))
    assert 1 < len(few) < len(ROWS) and list(few) == list(ROWS[: len(few)])
    assert max(row_seconds(make(max_rows=20, max_seqs=2).runner)) == 16, "a step has 20 rows"


def test_a_step_that_was_disturbed_takes_what_more_rows_take(make: Callable[..., Engine]) -> None:
    """By a clock that jumps in every run of 2 and of 32 rows but the shortest of each."""
    runner, clock = make().runner, SimpleNamespace(now=0.0, runs=0)
    forward = runner.forward

    def timed(step: Any) -> Any:
        n = step.seqs.num_rows
        clock.runs += n == 32
        clock.now += {1: 1.0, 2: 9.0, 4: 2.0, 8: 3.0, 16: 5.0, 32: 8.0}[n] + (n == 32 and clock.runs != 3)
        return forward(step)

    runner.forward = timed  # type: ignore[method-assign]
    want = {1: 1.0, 2: 2.0, 4: 2.0, 8: 3.0, 16: 5.0, 32: 8.0}
    assert row_seconds(runner, budget=1e9, clock=lambda: clock.now) == want


@pytest.fixture
def kept(tmp_path: Path) -> Any:
    """A model, a folder, and two ways to ask; every second measurement gives another number."""
    model, numbers = tmp_path / "model.gguf", count(2)
    model.write_bytes(b"weights")
    env = read_env({"STRETTO_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)})

    def ask(how: str = "avx2 2") -> dict[int, float]:
        return dict(known_row_seconds(lambda: {1: 0.25 * (next(numbers) // 2), 4: 9.0}, model, how, env))

    return SimpleNamespace(model=model, folder=tmp_path / "cache" / FOLDER, ask=ask)


def test_what_was_measured_is_kept(kept: Any) -> None:
    assert kept.ask() == kept.ask() == {1: 0.25, 4: 9.0}
    (file,) = kept.folder.iterdir()
    assert file.stat().st_mode & 0o077 == kept.folder.stat().st_mode & 0o077 == 0
    file.write_text('{"1": 0.5, "2": 0.75}')
    assert kept.ask() == {1: 0.5, 2: 0.75}, "it is read"
    assert kept.ask("avx2 1") == {1: 0.5, 4: 9.0}, "one thread is another machine"
    os.utime(kept.model, (1, 1))
    assert kept.ask() == {1: 0.75, 4: 9.0}, "another model of this name"
    assert len(list(kept.folder.iterdir())) == 3
    old = time.time() - KEEP_SECONDS - 1
    for one in kept.folder.iterdir():
        os.utime(one, (old, old))
    assert kept.ask() == {1: 1.0, 4: 9.0} and len(list(kept.folder.iterdir())) == 1, "machines change"


@pytest.mark.parametrize(
    ("second", "is_kept"),
    [({1: 2.0, 4: 6.2}, True), ({1: 1.0, 4: 1.5}, False), ({1: 0.4, 4: 3.0}, False), ({1: 1.0}, False)],
    ids=["twice as slow", "rows got cheaper", "one row got cheaper", "less was measured"],
)
def test_a_machine_that_is_busy_by_turns_is_not_kept(tmp_path: Path, second: dict[int, float], is_kept: bool) -> None:
    measured = iter([{1: 1.0, 4: 3.0}, second])
    env = read_env({"STRETTO_CACHE": str(tmp_path)})
    (tmp_path / "model").touch()
    found = known_row_seconds(lambda: next(measured), tmp_path / "model", "", env)
    assert found == {1: min(1.0, second[1]), 4: min(3.0, second.get(4, 3.0))}
    assert (tmp_path / FOLDER).exists() == is_kept


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"1": "x"}', '{"2": 0.5}', '{"1": -0.5}', '{"1": NaN}', '{"0": 1, "1": 1}', '{"1": [1]}'],
)
def test_nonsense_is_measured_again(kept: Any, text: str) -> None:
    kept.ask()
    (file,) = kept.folder.iterdir()
    file.write_text(text)
    assert kept.ask() == kept.ask() == {1: 0.5, 4: 9.0}
    assert json.loads(file.read_text()) == {"1": 0.5, "4": 9.0}


def test_a_cache_that_cannot_be_written_is_done_without(kept: Any) -> None:
    kept.folder.parent.mkdir()
    kept.folder.write_text("a file where the folder would be")
    assert kept.ask() == {1: 0.25, 4: 9.0} and kept.ask() == {1: 0.5, 4: 9.0}


def test_drafts_that_pay_are_made_and_drafts_that_cannot_are_not(make: Callable[..., Engine], lm: LM) -> None:
    """The same engine and drafter on two machines, by a clock that knows what rows cost; the same tokens."""
    known = {tuple(PROMPT): plain_decode(lm, PROMPT, 80)}
    drafted = []
    for row in (0.01, 5.0):
        clock = SimpleNamespace(now=0.0)
        policy = Gain()
        policy.know({n: 1 + row * (n - 1) for n in ROWS})
        one = make(drafter=Oracle(known), policies=Policies(draft=policy), clock=lambda clock=clock: clock.now)
        forward = one.runner.forward

        def timed(step: Any, forward: Any = forward, clock: Any = clock, row: float = row) -> Any:
            clock.now += 1 + row * (step.seqs.num_rows - 1)
            return forward(step)

        one.runner.forward = timed  # type: ignore[method-assign]
        one.add(PROMPT, Sampling(temperature=0, max_tokens=80).resolve())
        assert finish(one) == {0: known[tuple(PROMPT)]}
        drafted.append(one.drafting.stats.drafted)
    assert drafted[0] > 60 and drafted[1] == 0


def test_the_policy_hears_what_a_lookup_has_ready(make: Callable[..., Engine]) -> None:
    seen: list[tuple[float, ...] | None] = []

    class Listens(Gain):
        def budgets(self, jobs: Any, most: int) -> list[int]:
            seen.extend(job.acceptance for job in jobs)
            return super().budgets(jobs, most)

    one = make(drafter=Config().build(None), policies=Policies(draft=Listens()))  # type: ignore[arg-type]
    one.add(PROMPT, Sampling(temperature=0, max_tokens=NUM_TOKENS).resolve())
    finish(one)
    assert None not in seen and any(seen) and all(0 <= w <= 1 for offer in seen for w in offer or ())


def test_rows_in_words() -> None:
    said = verified_rows({1: 0.01, 2: 0.01, 4: 0.02, 8: 0.2})
    assert list(said) == [1, 2, 4, 8] and said[1] == "10.00 ms"
    assert said[2].endswith("a draft of 1 pays if 0% of its tokens hold, given those before")
    assert "pays if 54%" in said[4]  # 1 + a + a^2 + a^3 = 2
    assert said[8].endswith("pays never")


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "seconds.json"
    write_whole(file, b"old")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, b"new")
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]
    assert file.stat().st_mode & 0o777 == 0o600
