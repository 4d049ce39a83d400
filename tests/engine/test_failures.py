"""One bad row ends its own request; a step that raises ends those that were there; the engine serves on."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from drafters import Letters as LetterIds
from drafters import Oracle, Saboteur, TreeOracle, toy_target
from test_engine import CONTROLS, options
from test_native import MODELS, PATIENT, engine, tiled
from toy import HYBRID, nodes, plain_decode, toy_engine, toy_lm

from stretto.core.card import DRAFTERS, JUDGES
from stretto.core.drafter import Ask, Draft, Round, Verdict
from stretto.core.errors import UserError
from stretto.core.sampling import Noise, Sampling
from stretto.core.tree import Tree
from stretto.engine.engine import Engine
from stretto.engine.judges.ratio import Ratio
from stretto.engine.request import Event
from stretto.models.lm import LM

NUM_TOKENS = 20
BAD = 22  # after this token every logit is NaN
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [5, 5, 5, 5, 5, 5], [0, 2, 1, 3], [9, 8, 7, 6], [11, 12, 11, 12]]
GREEDY = Sampling(temperature=0, max_tokens=NUM_TOKENS)
NAN = "error: a logit is NaN"
Ending = tuple[list[int], str]
Make = Callable[..., Engine]


def spoiled(lm: LM) -> LM:
    """A copy whose embedding of BAD is NaN: a request lives until it reads that token."""
    copy = lm.config.build()
    copy.load_state_dict(lm.state_dict())
    copy.cast(lm.dtype).eval().requires_grad_(False)
    copy.embed.weight[BAD] = torch.nan
    return copy


def by_torch(lm: LM) -> Make:
    return lambda **sizes: toy_engine(lm, **sizes)


def by_native(lm: LM) -> Make:
    tiles = tiled(lm)
    return lambda **sizes: engine(tiles, **sizes)


# Seeds with which some of the texts hold BAD, some early and some late, and some do not.
CASES = {
    "torch, hybrid": (HYBRID, 0, by_torch),
    "torch, attention": (MODELS["attention"]["mixers"], 3, by_torch),
    "native, attention": (MODELS["attention"]["mixers"], 3, by_native),
    "native, hybrid": (MODELS["hybrid"]["mixers"], 3, by_native),
    "native, mamba": (MODELS["mamba"]["mixers"], 5, by_native),
}


class Case:
    """A model that fails after BAD, the engines that run it, and what the sound model says."""

    def __init__(self, mixers: Sequence[str], seed: int, backend: Callable[[LM], Make]) -> None:
        self.sound = toy_lm(mixers, seed=seed)
        self.engine = backend(spoiled(self.sound))
        self._texts: dict[str, list[list[int]]] = {}

    def texts(self, sampling: Sampling) -> list[list[int]]:
        if (key := repr(sampling)) not in self._texts:
            self._texts[key] = [plain_decode(self.sound, prompt, NUM_TOKENS, sampling) for prompt in PROMPTS]
        return self._texts[key]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*CASES[request.param])


def endings(texts: list[list[int]]) -> list[Ending]:
    """What the spoiled model makes of the texts of the sound one."""
    cut = [text[: text.index(BAD) + 1] if BAD in text else text for text in texts]
    return [(text, "length" if len(text) == NUM_TOKENS else NAN) for text in cut]


def run(engine: Engine, sampling: Sampling, prompts: list[list[int]], patience: float = 0.0) -> list[Ending]:
    """Per prompt, its tokens and how it ended. Checks the cache after every step, and that all is free at the end."""
    requests = [engine.add(prompt, sampling.resolve()) for prompt in prompts]
    outputs: dict[int, list[int]] = {r.rid: [] for r in requests}
    ends: dict[int, str] = {}
    steps = 0
    while not engine.is_idle:
        steps += 1
        assert steps < 2000, "no progress"
        for event in engine.step(patience):
            assert event.rid not in ends, "the last event is the last"
            outputs[event.rid] += event.token_ids
            if event.finish_reason is not None:
                ends[event.rid] = ending(event)
        engine.runner.cache.check()
    assert_empty(engine)
    return [(outputs[r.rid], ends[r.rid]) for r in requests]


def ending(event: Event) -> str:
    assert (event.error is not None) == (event.finish_reason == "error")
    if not isinstance(event.error, UserError):
        return str(event.finish_reason) if event.error is None else repr(event.error)
    return event.error.lines()[0]


def assert_empty(engine: Engine) -> None:
    assert engine.is_idle and not engine.scheduler.running and not engine.scheduler.waiting
    assert engine.runner.cache.free_blocks == engine.runner.cache.pools.num_pages
    assert engine.runner.cache.free_slots == engine.runner.cache.pools.num_slots - 1
    assert not engine.runner.cache.ledger.holdings
    if isinstance(engine.drafting.drafter, Oracle | Saboteur | TreeOracle):
        assert not engine.drafting.drafter.held
    engine.runner.cache.check()


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("sizes", [{}, {"max_seqs": 2, "max_rows": 7}], ids=str)
def test_a_request_that_meets_nan_ends_alone(case: Case, name: str, sizes: dict[str, int]) -> None:
    """With every drafter the tokens of plain decoding up to the failure, and all tokens of everybody else."""
    texts = case.texts(GREEDY)
    assert 0 < sum(BAD in text[:-1] for text in texts) < len(texts)
    known = {tuple(p): text for p, text in zip(PROMPTS, texts, strict=True)}
    one = case.engine(**sizes, **options(name, known, 5, 0, 9, 1))
    assert run(one, GREEDY, PROMPTS) == endings(texts)
    assert run(one, GREEDY, [[4, BAD, 4], *PROMPTS])[1:] == endings(texts), "and again, with one that fails at once"


class Wrong(Saboteur):
    """Proposes nothing but BAD."""

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [Draft((BAD,)) for _ in asks]

    def observe(self, rounds: Sequence[Round]) -> None:
        assert all(one.verdict.emitted for one in rounds), "a round without a token is none"
        super().observe(rounds)


def test_wrong_drafts_that_give_nan_harm_nobody(case: Case) -> None:
    """In every step, from the first one on, where the texts do not hold that token."""
    prompts = [[7], [t % BAD for t in range(65)], [5, 5]]  # all is pending in one; a last chunk of one row in another
    texts = [plain_decode(case.sound, prompt, NUM_TOKENS) for prompt in prompts]
    one = case.engine(max_rows=64, drafter=Wrong({}, BAD), policies=nodes(1))
    assert run(one, GREEDY, prompts) == endings(texts)
    assert [run(one, GREEDY, [prompt])[0] for prompt in prompts] == endings(texts)


SAMPLED = Sampling(temperature=0.9, top_p=0.95, seed=4, max_tokens=NUM_TOKENS)


@pytest.mark.parametrize("patience", [0.0, PATIENT])
@pytest.mark.parametrize(
    "sampling", [GREEDY, SAMPLED, Sampling(temperature=1.2, top_k=5, seed=8, max_tokens=NUM_TOKENS)]
)
def test_a_request_that_meets_nan_ends_alone_in_plain_steps(case: Case, sampling: Sampling, patience: float) -> None:
    """Step by step, and on native kernels several steps in a row."""
    texts = case.texts(sampling)
    assert any(BAD in text[:-1] for text in texts)
    assert run(case.engine(), sampling, PROMPTS, patience) == endings(texts)


def test_a_text_that_ends_before_the_failure_is_not_part_of_it(case: Case) -> None:
    """The stop token comes out of the same run of steps as the failure of somebody else, and its own would follow."""
    texts = case.texts(GREEDY)
    which, text = next((i, t) for i, t in enumerate(texts) if BAD in t[1:-1])
    at = text.index(BAD)
    prompts = [PROMPTS[which], [4, BAD], *PROMPTS]
    stop = Sampling(temperature=0, max_tokens=NUM_TOKENS, stop_token_ids=[BAD])
    got = run(case.engine(), stop, prompts, PATIENT)
    assert got[0] == (text[: at + 1], "stop") and got[1] == ([], NAN)
    limit = Sampling(temperature=0, max_tokens=at + 1)
    assert run(case.engine(), limit, prompts, PATIENT)[:2] == [(text[: at + 1], "length"), ([], NAN)]


@pytest.mark.parametrize("judge", ["coupled", "ratio"])
@pytest.mark.parametrize(
    "changes", [{"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.9}, {"logprobs": 2}], ids=str
)
def test_a_request_without_an_allowed_token_ends_alone(case: Case, judge: str, changes: dict[str, float]) -> None:
    """`min_tokens` bans every token that would end the text, and this one names them all."""
    healthy = Sampling(**{"temperature": 0.9, "seed": 4, "max_tokens": 4, **changes})  # type: ignore[arg-type]
    vocab = case.sound.config.vocab_size
    banned = Sampling(temperature=0.9, max_tokens=4, min_tokens=3, stop_token_ids=range(vocab))
    greedy = Sampling(temperature=0, max_tokens=4, min_tokens=1, stop_token_ids=range(vocab))
    alone = run(case.engine(judge=JUDGES.card(judge).make()), healthy, PROMPTS)
    prompts = [p for p, (_, end) in zip(PROMPTS, alone, strict=True) if end == "length"]
    want = [tokens for tokens, end in alone if end == "length"]
    assert prompts
    one = case.engine(judge=JUDGES.card(judge).make())
    bad = {one.add([1, 2], sampling.resolve()).rid for sampling in (banned, greedy)}
    good = [one.add(prompt, healthy.resolve()).rid for prompt in prompts]
    outputs: dict[int, list[int]] = {rid: [] for rid in (*bad, *good)}
    errors = {}
    while not one.is_idle:
        for event in one.step(PATIENT):
            outputs[event.rid] += event.token_ids
            if event.error is not None:
                errors[event.rid] = event.error
        one.runner.cache.check()
    assert errors.keys() == bad and all("no token is allowed" in str(error) for error in errors.values())
    assert [outputs[rid] for rid in good] == want and not any(outputs[rid] for rid in bad)


def test_logprobs_stop_where_the_request_fails(case: Case) -> None:
    texts = case.texts(GREEDY)
    which, text = next((i, t) for i, t in enumerate(texts) if BAD in t[1:-1])
    one = case.engine(**options("oracle", {tuple(PROMPTS[which]): text}, 6))
    request = one.add(PROMPTS[which], Sampling(temperature=0, max_tokens=NUM_TOKENS, logprobs=1).resolve())
    ids, likeliest = [], []
    while not one.is_idle:
        for event in one.step():
            ids += event.token_ids
            likeliest += [next(iter(own.top)) for own in event.logprobs]
    assert ids == likeliest == text[: text.index(BAD) + 1] == request.output


class Trees(Oracle):
    """Trees of drawn tokens for prompts that begin with 7: the ratio judge is given chains."""

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        draft = Draft((1, 2, 3), Tree.drafted((0, 0, 1)), torch.full((3, 23), 1 / 23))
        return [draft.truncate(ask.max_tokens) if self.held[ask.rid][0] == 7 else Draft() for ask in asks]

    def observe(self, rounds: Sequence[Round]) -> None:
        self.seen = getattr(self, "seen", []) + [one.draft for one in rounds if len(one.draft)]
        super().observe(rounds)


class Strict(Ratio):
    """Refuses whatever was drawn."""

    def judge(self, draft: Draft, rows: torch.Tensor, position: int, noise: Noise) -> Verdict:
        if draft.probs is not None:
            raise UserError("nothing drawn")
        return super().judge(draft, rows, position, noise)


def test_a_draft_that_the_judge_refuses_ends_its_request_only() -> None:
    lm = toy_lm(["attention"], seed=3)
    sampling = Sampling(temperature=1.0, seed=2, max_tokens=5)
    plain = run(toy_engine(lm, judge=Ratio()), sampling, [[7], [3, 1]])
    strict = toy_engine(lm, judge=Strict(), drafter=Trees({}), policies=nodes(4))
    got = run(strict, sampling, [[7], [3, 1]])
    assert got[0] == (plain[0][0][: len(got[0][0])], "error: nothing drawn") and got[1] == plain[1]


def test_a_judge_without_drawn_trees_is_given_their_first_children() -> None:
    drafter = Trees({})
    one = toy_engine(toy_lm(["attention"], seed=3), judge=Ratio(), drafter=drafter, policies=nodes(4))
    assert run(one, Sampling(temperature=1.0, seed=2, max_tokens=9), [[7]])[0][1] == "length"
    assert drafter.seen and all(d.tokens == (1, 3) and len(d.probs) == 2 for d in drafter.seen if len(d) > 1)


# -- steps that raise --------------------------------------------------------------------------------------------------


class Once:
    """A function that raises the first time after it was armed."""

    def __init__(self, wrapped: Callable[..., object], problem: BaseException) -> None:
        self.wrapped, self.problem, self.armed = wrapped, problem, False

    def __call__(self, *args: object, **named: object) -> object:
        if self.armed:
            self.armed = False
            raise self.problem
        return self.wrapped(*args, **named)


@pytest.mark.parametrize("case", ["torch, hybrid", "native, attention"], indirect=True)
@pytest.mark.parametrize("sizes", [{}, {"max_seqs": 2, "max_rows": 7}], ids=str)
@pytest.mark.parametrize("where", ["forward", "schedule", "reserve", "propose", "observe", "commit"])
@pytest.mark.parametrize("when", [0, 4])
def test_a_step_that_raises_ends_all_requests_and_no_later_one(
    case: Case, where: str, when: int, sizes: dict[str, int]
) -> None:
    """Requests in the step and in the queue hear of it; cache, queue and drafter are empty, and the next ones run."""
    texts = [text for text in case.texts(GREEDY) if BAD not in text]
    prompts = [p for p, text in zip(PROMPTS, case.texts(GREEDY), strict=True) if BAD not in text]
    one = case.engine(
        **sizes, drafter=Oracle({tuple(p): t for p, t in zip(prompts, texts, strict=True)}), policies=nodes(4, 0)
    )
    owner, name = {
        "forward": (one.runner, "forward"), "schedule": (one.scheduler, "schedule"),
        "reserve": (one.runner.cache, "reserve"),
        "propose": (one.drafting.drafter, "propose"), "observe": (one.drafting.drafter, "observe"), 
        "commit": (one.runner.cache, "commit"),
    }[where]  # fmt: skip
    problem = RuntimeError("out of luck")
    once = Once(getattr(owner, name), problem)
    setattr(owner, name, once)
    for _ in range(2):
        requests = [one.add(prompt, GREEDY.resolve()) for prompt in (*prompts, *prompts)]
        ended: dict[int, Event] = {}
        for step in range(1000):
            once.armed |= step == when
            for event in one.step():
                if event.finish_reason is not None:
                    assert ended.setdefault(event.rid, event) is event, "the last event is the last"
            one.runner.cache.check()
            if one.is_idle:
                break
        assert not once.armed and ended.keys() == {request.rid for request in requests}
        failed = [event for event in ended.values() if event.error is not None]
        assert failed and all(event.error is problem and event.finish_reason == "error" for event in failed)
        assert_empty(one)
    assert run(one, GREEDY, prompts) == [(text, "length") for text in texts]


@pytest.mark.parametrize("others", [0, 2])
def test_a_drafter_that_cannot_release_is_heard_of(others: int) -> None:
    """By the requests that are left; without any, by the caller."""
    lm = toy_lm(["attention"], seed=3)
    one = toy_engine(lm, **options("ngram", {}, 4))
    first = one.add(PROMPTS[0], Sampling(temperature=0, max_tokens=1).resolve())
    rids = [one.add(prompt, GREEDY.resolve()).rid for prompt in PROMPTS[1 : 1 + others]]
    problem = KeyError(first.rid)
    once = Once(one.drafting.drafter.release, problem)  # type: ignore[union-attr]
    once.armed, one.drafting.drafter.release = True, once  # type: ignore[union-attr, method-assign, assignment]
    if others:
        events = {event.rid: event for event in one.step()}
        assert events[first.rid].finish_reason == "length" and [events[rid].error for rid in rids] == [problem] * others
    else:
        with pytest.raises(KeyError):
            one.step()
    assert_empty(one)


class Letters:
    """Tokens as letters; cannot spell one of them."""

    def push(self, token: int) -> tuple[str, bool]:
        if token == BAD:
            raise RuntimeError("no such letter")
        return chr(97 + token), False

    def finish(self) -> str:
        raise AssertionError("a failed text is not finished")


def test_a_text_that_raises_ends_the_step_and_loses_no_event() -> None:
    """What came before it in the same step is reported, also where that was the last event of a request."""
    lm = toy_lm(["attention"], seed=3)
    want = plain_decode(lm, [7], 1)
    one = toy_engine(lm)
    short = one.add([7], Sampling(temperature=0, max_tokens=1).resolve())
    spelt = one.add([1], Sampling(temperature=0, logit_bias={BAD: 100.0}).resolve(), Letters())
    events = {event.rid: event for event in one.step()}
    assert events[short.rid].token_ids == tuple(want) and events[short.rid].finish_reason == "length"
    assert events[spelt.rid].finish_reason == "error" and str(events[spelt.rid].error) == "no such letter"
    assert_empty(one)


def test_an_interrupt_goes_through_and_leaves_the_engine_empty(case: Case) -> None:
    one = case.engine()
    once = Once(one.runner.forward, KeyboardInterrupt())
    one.runner.forward = once  # type: ignore[assignment]
    for prompt in PROMPTS:
        one.add(prompt, GREEDY.resolve())
    once.armed = True
    with pytest.raises(KeyboardInterrupt):
        one.step()
    assert_empty(one)
    assert run(one, GREEDY, PROMPTS) == endings(case.texts(GREEDY))


@pytest.mark.parametrize("kind", ["jacobi", "model", "suffix"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8, seed=4, max_tokens=NUM_TOKENS)], ids=str)
def test_drafters_survive_rows_without_a_token(case: Case, kind: str, sampling: Sampling) -> None:
    """Guesses after a row that gave no token, and a draft model with the same damage."""
    plain = case.engine()
    lm, threads = plain.runner.model, plain.runner.recording and plain.runner.recording.operations.team
    target = replace(toy_target(lm, threads=threads), load=lambda path: (lm, LetterIds()))
    card = DRAFTERS.card(kind)
    drafter = card.make(**card.tiny).build(target)
    one = case.engine(drafter=drafter, policies=nodes(6))
    assert run(one, sampling, PROMPTS) == endings(case.texts(sampling))
    if kind == "model":  # it is right, but the token after which there is none is not counted as accepted
        stats, damaged = one.drafting.stats, sum(BAD in text for text in case.texts(sampling))
        assert stats.drafted - stats.accepted <= damaged
