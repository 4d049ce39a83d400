"""What an engine does for its drafter, at the edges: errors in any call, tokens that do not exist, steps ahead."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from drafters import Letters, Oracle, toy_target
from native import team
from test_native import PATIENT, tiled
from test_native import engine as native_engine
from toy import VOCAB, finish, nodes, plain_decode, toy_engine, toy_lm

from stretto.core.card import DRAFTERS, Can
from stretto.core.drafter import Ask, Branch, Draft, Needs, Piece, Round
from stretto.core.sampling import Sampling
from stretto.engine.engine import Engine
from stretto.engine.judges.coupled import Coupled
from stretto.engine.policies.draft.always import Always
from stretto.engine.scheduler import Policies

PROMPTS = [[3, 1, 4, 1, 5], [7], [9, 2, 6] * 9]
NUM_TOKENS = 20
GREEDY = Sampling(temperature=0, max_tokens=NUM_TOKENS)
Make = Callable[..., Engine]


@pytest.fixture(scope="module", params=["torch", "native"])
def make(request: pytest.FixtureRequest) -> Make:
    lm = toy_lm(["gated_delta", "attention"], seed=3)
    if request.param == "torch":
        return lambda **options: toy_engine(lm, **options)
    tiles = tiled(lm)
    return lambda **options: native_engine(tiles, **options)


@pytest.fixture(scope="module")
def known() -> dict[tuple[int, ...], list[int]]:
    lm = toy_lm(["gated_delta", "attention"], seed=3)
    return {tuple(p): plain_decode(lm, p, NUM_TOKENS) for p in PROMPTS}


class AllNeeds(Oracle):
    """Always right, and asks for everything that there is."""

    needs = Needs(features=(1,), rows=True, extra=3, picks=True, top=2)

    def __init__(self, known: dict[tuple[int, ...], list[int]]) -> None:
        super().__init__(known)
        self.calls = list[str]()

    def extra(self, asks: Sequence[Ask], drafts: Sequence[Draft]) -> list[Branch]:
        self.calls.append("extra")
        return [Branch((1, 2, 3), (0, 0, len(draft) + 1)) for draft in drafts]

    def prefetch(self, drafts: Sequence[tuple[int, Draft]]) -> None:
        self.calls.append("prefetch")

    def read(self, pieces: Sequence[Piece]) -> None:
        self.calls.append("read")


def empty(one: Engine) -> None:
    cache = one.runner.cache
    cache.check()
    assert one.is_idle and not one.scheduler.running and not one.scheduler.waiting
    assert cache.free_blocks == cache.pools.num_pages and not one.drafting._known


@pytest.mark.parametrize("where", ["admit", "propose", "extra", "prefetch", "read", "observe", "release"])
def test_an_error_in_any_call_of_a_drafter_leaks_nothing(make: Make, known: Any, where: str) -> None:
    drafter = AllNeeds(known)
    one = make(drafter=drafter, policies=nodes(4), max_rows=60)
    problem, called, armed = RuntimeError("out of luck"), getattr(drafter, where), [3]

    def fails(*args: object, **named: object) -> object:
        armed[0] -= 1
        if not armed[0]:
            raise problem
        return called(*args, **named)

    setattr(drafter, where, fails)
    for prompt in PROMPTS:
        one.add(prompt, GREEDY.resolve())
    errors = []
    try:
        while not one.is_idle:
            errors += [event.error for event in one.step() if event.error is not None]
    except RuntimeError as raised:
        errors.append(raised)
    assert errors and all(error is problem for error in errors)
    empty(one)
    assert not drafter.held or where in ("admit", "release")
    drafter.held.clear()
    requests = [one.add(prompt, GREEDY.resolve()) for prompt in PROMPTS]
    finish(one)
    assert [r.output for r in requests] == [known[tuple(p)] for p in PROMPTS]
    empty(one)


class Mute:
    """Says nothing, and cannot end."""

    def push(self, token: int) -> tuple[str, bool]:
        return "", False

    def finish(self) -> str:
        raise RuntimeError("no end")


def test_a_cancelled_text_that_cannot_end_leaves_nothing(make: Make, known: Any) -> None:
    one = make(drafter=Oracle(known), policies=nodes(4))
    request = one.add(PROMPTS[0], GREEDY.resolve(), Mute())
    one.step()
    with pytest.raises(RuntimeError, match="no end"):
        one.cancel(request.rid)
    empty(one)


class Beyond(Oracle):
    def __init__(self, token: int) -> None:
        super().__init__({})
        self.token = token

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [Draft((self.token,)) for _ in asks]


@pytest.mark.parametrize("token", [-1, VOCAB, VOCAB + 1000])
def test_a_token_that_does_not_exist_never_reaches_the_model(make: Make, token: int) -> None:
    one = make(drafter=Beyond(token), policies=nodes(2))
    one.add([1, 2], GREEDY.resolve())
    errors = []
    while not one.is_idle:
        errors += [event.error for event in one.step() if event.error is not None]
    assert len(errors) == 1 and "does not exist" in str(errors[0])


@pytest.mark.parametrize("natively", [False, True])
def test_a_model_drafts_as_much_as_a_step_can_verify(natively: bool) -> None:
    lm = toy_lm(["gated_delta", "attention", "mamba"], seed=4)
    tiles = tiled(lm) if natively else lm
    target = replace(
        toy_target(tiles, threads=team() if natively else None), max_rows=256, load=lambda path: (tiles, Letters())
    )
    drafter = DRAFTERS.card("model").make(path="itself").build(target)
    make = native_engine if natively else toy_engine
    one = make(tiles, drafter=drafter, policies=nodes(0, 0, 0, 0, 0, 0, 0, 63), max_rows=256)
    prompts = [[1, 2, 3], [7] * 30, [5]]
    requests = [one.add(p, Sampling(temperature=0, max_tokens=90).resolve()) for p in prompts]
    finish(one)
    want = [plain_decode(lm, p, 90) for p in prompts]
    assert [r.output for r in requests] == want
    stats = one.drafting.stats
    assert len(stats.accepted_at) > 48
    assert stats.accepted == stats.drafted > 60


class Hearing(Oracle):
    """Hears rows and picks, and checks that they are the text, once and in order."""

    needs = Needs(rows=True, picks=True)

    def __init__(self, known: dict[tuple[int, ...], list[int]]) -> None:
        super().__init__(known)
        self.read_tokens: dict[int, list[int]] = {}
        self.ahead = 0

    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        super().admit(rid, tokens)
        self.read_tokens[rid] = []

    def read(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            assert piece.start == len(self.read_tokens[piece.rid])
            self.read_tokens[piece.rid] += piece.tokens

    def observe(self, rounds: Sequence[Round]) -> None:
        super().observe(rounds)
        for one in rounds:
            assert self.read_tokens[one.rid] == self.held[one.rid][:-1]
            plain = len(one.verdict.emitted) - len(one.verdict.path)
            if plain > 1:
                assert one.picks is None and not len(one.draft)
                self.ahead += 1
            else:
                assert one.picks is not None and len(one.picks) == len(one.draft) + 1


@pytest.mark.parametrize("kind", ["hearing", "jacobi", "model", "suffix"])
def test_drafters_hear_of_steps_that_ran_as_one(make: Make, known: Any, kind: str) -> None:
    lm = make().runner.model
    if kind == "hearing":
        drafter: Any = Hearing(known)
    else:
        card = DRAFTERS.card(kind)
        drafter = card.make(**card.tiny).build(toy_target(lm, threads=None if lm.dtype == torch.float64 else team()))
    policy = nodes(0, 0, 0, 5)
    policy.draft.plain_steps = lambda num_seqs: 3  # type: ignore[union-attr, method-assign]
    one = make(drafter=drafter, policies=policy)
    requests = [one.add(prompt, GREEDY.resolve()) for prompt in PROMPTS]
    finish(one, PATIENT)
    assert [r.output for r in requests] == [known[tuple(p)] for p in PROMPTS]
    empty(one)
    if kind == "hearing":
        assert (drafter.ahead > 0) == one.scheduler.limits.runs_ahead and drafter.accepted > 0


class NoDrafts(Coupled):
    can = Can.SAMPLED


class NoTrees(Coupled):
    can = Can.CHAIN | Can.SAMPLED


def test_steps_run_as_one_where_nothing_can_be_drafted(make: Make, known: Any) -> None:
    """Also under a policy that always drafts: it is not asked."""
    lengths = []
    for options in ({}, {"drafter": Oracle(known), "policies": Policies(draft=Always(4)), "judge": NoDrafts()}):
        one, steps = make(**options), 0
        requests = [one.add(prompt, GREEDY.resolve()) for prompt in PROMPTS]
        while not one.is_idle:
            one.step(PATIENT)
            steps += 1
        assert [r.output for r in requests] == [known[tuple(p)] for p in PROMPTS]
        lengths.append(steps)
    assert lengths[0] == lengths[1]


def test_rows_that_cannot_ride_along_take_no_place_from_drafts(make: Make, known: Any) -> None:
    """6 rows: 3 prompts that decode, and one token each beside them; with 3 extra rows there would be none."""
    drafter = AllNeeds(known)
    one = make(drafter=drafter, policies=nodes(4), judge=NoTrees(), max_seqs=3, max_rows=6)
    requests = [one.add(prompt, GREEDY.resolve()) for prompt in PROMPTS]
    finish(one)
    assert [r.output for r in requests] == [known[tuple(p)] for p in PROMPTS]
    assert "extra" not in drafter.calls and drafter.accepted > 12


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Branch((1,), (-1,)),
        lambda: Branch((1, 2), (0,)),
        lambda: Draft((1, 2), scores=(0.5,)),
        lambda: Draft((1,), probs=torch.zeros(2, VOCAB)),
    ],
)
def test_drafts_and_branches_say_all_of_every_row(wrong: Callable[[], object]) -> None:
    with pytest.raises(AssertionError):
        wrong()
