"""Laws of the `Drafter` socket through the engine: every filler and every kind of need, on every mixer family.

Batches of 1 to 8, with preemption and cancellation mixed in, through torch in fp64 and natively: plain decoding, token
for token.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from drafters import Ahead, Features, Letters, RidingAlong, toy_target
from hypothesis import given, settings
from hypothesis import strategies as st
from native import team
from test_native import engine as native_engine
from test_native import tiled
from toy import VOCAB, nodes, plain_decode, toy_engine, toy_lm

from stretto.core.card import DRAFTERS, MIXERS, Can
from stretto.core.drafter import Ask, Draft, Drafter, Piece, Round, Verdict
from stretto.core.errors import FitError, UserError
from stretto.core.sampling import Sampling
from stretto.drafters.model import Model
from stretto.drafters.ngram import NGram
from stretto.drafters.suffix import Suffix
from stretto.engine.engine import Engine
from stretto.models.lm import LM

LENGTH = 20
FAMILIES = [card.name for card in MIXERS.cards(Can.CAUSAL | Can.TREE)]
Known = dict[tuple[int, ...], list[int]]
Make = Callable[[LM, LM, Known, Any], Drafter]


def of_card(name: str) -> Make:
    card = DRAFTERS.card(name)
    return lambda lm, oracle, known, threads: card.make(**card.tiny).build(toy_target(lm, threads=threads))


KINDS: dict[str, Make] = {
    **{card.name: of_card(card.name) for card in DRAFTERS.cards()},
    "features": lambda lm, oracle, known, threads: Features(oracle, 1e-9 if threads is None else 2e-3),
    "asynchronous": lambda lm, oracle, known, threads: Ahead(known),
    "riding along": lambda lm, oracle, known, threads: RidingAlong(
        known, VOCAB, lambda text: plain_decode(oracle, text, 1)[0]
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def oracle(request: pytest.FixtureRequest) -> LM:
    return toy_lm([request.param, request.param], seed=2)


@pytest.fixture(scope="module")
def known(oracle: LM) -> Known:
    rng = random.Random(1)
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.choice((1, 7, 19, 33)))] for _ in range(8)]
    return {tuple(p): plain_decode(oracle, p, LENGTH) for p in prompts}


def run(engine: Engine, known: Known, num_seqs: int) -> int:
    """All texts at once, some of them preempted (also where nothing lacks memory), cancelled, begun again. How many
    preemptions there were."""
    rng, sampling = random.Random(num_seqs), Sampling(temperature=0, max_tokens=LENGTH).resolve()
    waiting = list(known)[:num_seqs]
    live: dict[int, tuple[tuple[int, ...], list[int]]] = {}
    jobs = []
    while waiting or live:
        while waiting:
            prompt = waiting.pop()
            request = engine.add(prompt, sampling)
            live[request.rid] = (prompt, [])
            jobs.append(request.job)
        if rng.random() < 0.08 and len(jobs) < 30:
            rid = rng.choice(list(live))
            engine.cancel(rid)
            waiting.append(live.pop(rid)[0])
        if engine.scheduler.running and rng.random() < 0.05:
            job = rng.choice(engine.scheduler.running)
            engine.scheduler.preempt(job)
            engine.drafting.forget(job.rid)
        for event in engine.step():
            assert event.error is None, event.error
            prompt, output = live[event.rid]
            output += event.token_ids
            assert output == known[prompt][: len(output)]
            if event.finish_reason is not None:
                assert len(output) == LENGTH
                del live[event.rid]
        engine.runner.cache.check()
    assert engine.is_idle and engine.runner.cache.free_blocks == engine.runner.cache.pools.num_pages
    return sum(job.num_preemptions for job in jobs)


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_of_every_kind_change_nothing(oracle: LM, known: Known, kind: str) -> None:
    preemptions = 0
    for num_seqs in (1, 8):
        drafter = KINDS[kind](oracle, oracle, known, None)
        one = toy_engine(oracle, context=64, pages=9, max_rows=40, drafter=drafter, policies=nodes(5, 0, 3))
        preemptions += run(one, known, num_seqs)
    assert preemptions > 0
    check_used(drafter, one)


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_of_every_kind_change_nothing_natively(oracle: LM, known: Known, kind: str) -> None:
    lm = tiled(oracle)
    drafter = KINDS[kind](lm, oracle, known, team())
    one = native_engine(lm, max_rows=40, drafter=drafter, policies=nodes(5, 0, 3))
    run(one, known, 5)
    check_used(drafter, one)


def check_used(drafter: Drafter, one: Engine) -> None:
    """What it exists for has happened (a text without repetition gives lookups nothing to say)."""
    assert one.drafting.stats.drafted > 0 or isinstance(drafter, NGram | Suffix)
    if isinstance(drafter, Ahead):
        assert drafter.hits > 0 and drafter.accepted > 0
    if isinstance(drafter, RidingAlong):
        assert drafter.checked > 20 and drafter.tops > 0


@pytest.mark.parametrize("kind", ["jacobi", "model", "suffix"])
def test_the_same_seed_gives_the_same_text(oracle: LM, kind: str) -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9, seed=5, max_tokens=LENGTH)
    prompts = [[1, 2, 3], [4, 5]]
    want = [plain_decode(oracle, prompt, LENGTH, sampling) for prompt in prompts]
    one = toy_engine(oracle, drafter=KINDS[kind](oracle, oracle, {}, None), policies=nodes(6))
    requests = [one.add(prompt, sampling.resolve()) for prompt in prompts]
    while not one.is_idle:
        one.step()
    assert [request.output for request in requests] == want


@pytest.mark.parametrize("changes", [{"temperature": 0}, {"temperature": 0.9, "seed": 3}], ids=str)
def test_a_model_that_drafts_for_itself_is_always_right(changes: dict[str, float]) -> None:
    """Its cache is never behind or ahead: the same model, the same noise, every draft accepted."""
    lm = toy_lm(["gated_delta", "attention", "mamba"], seed=4)
    target = replace(toy_target(lm), load=lambda path: (lm, Letters()))
    drafter = DRAFTERS.card("model").make(path="itself").build(target)
    one = toy_engine(lm, drafter=drafter, policies=nodes(6))
    for prompt in ([1, 2, 3], [7] * 40, [5]):
        one.add(prompt, Sampling(max_tokens=30, **changes).resolve())  # type: ignore[arg-type]
    while not one.is_idle:
        one.step()
    stats = one.drafting.stats
    assert stats.accepted == stats.drafted > 60


def test_a_model_with_other_tokens_cannot_draft() -> None:
    lm = toy_lm(["attention"])
    for target in (replace(toy_target(lm), tokenizer=Letters(("c",))), replace(toy_target(lm), vocab_size=VOCAB + 1)):
        with pytest.raises(UserError, match=r"(?s)cannot draft.*tokenizers differ"):
            DRAFTERS.card("model").make(path="other").build(target)
    with pytest.raises(UserError, match=r"(?s)needs a model.*model:path="):
        DRAFTERS.card("model").make().build(toy_target(lm))


def test_a_model_whose_cache_is_too_small_says_which_setting() -> None:
    """Not the memory of the target's cache, which another setting gives."""
    target = replace(toy_target(toy_lm(["attention"])), context=10_000)
    with pytest.raises(FitError, match=r"(?s)other cannot draft.*10,000 tokens.*1MiB.*model:path=other,mem=") as caught:
        DRAFTERS.card("model").make(path="other", mem="1MiB").build(target)
    assert "--mem" not in str(caught.value)


def without(can: Can) -> LM:
    lm = toy_lm(["attention"])
    mixer = lm.blocks[0].mixer
    mixer.__class__ = type("Limited", (type(mixer),), {"can": mixer.can & ~can})
    return lm


@pytest.mark.parametrize("can", [Can.CAUSAL, Can.CHAIN, Can.PACKED], ids=str)
def test_a_model_that_cannot_take_rows_back_cannot_draft(can: Can) -> None:
    target = replace(toy_target(toy_lm(["attention"])), load=lambda path: (without(can), Letters()))
    with pytest.raises(UserError, match=r"(?s)other cannot draft.*one of its layers"):
        DRAFTERS.card("model").make(path="other").build(target)
    if can is Can.PACKED:
        DRAFTERS.card("model").make(path="other").build(replace(target, max_seqs=1))


def test_a_small_cache_means_fewer_drafts_and_the_same_text() -> None:
    lm = toy_lm(["attention", "attention"])
    prompts = [[1, 2, 3], [4] * 20, [5, 6]]
    want = [plain_decode(lm, prompt, LENGTH) for prompt in prompts]
    drafted = []
    for pages in (7, 100):
        drafter = Model(lm.first(1), replace(toy_target(lm), context=8), memory_bytes=pages * 16 * 2 * 8 * 16)
        cache = drafter._runner.cache
        one = toy_engine(lm, drafter=drafter, policies=nodes(6))
        requests = [one.add(prompt, Sampling(temperature=0, max_tokens=LENGTH).resolve()) for prompt in prompts]
        while not one.is_idle:
            one.step()
            cache.check()
        assert [request.output for request in requests] == want
        assert cache.free_blocks == cache.pools.num_pages
        drafted.append(one.drafting.stats.drafted)
    assert 0 < drafted[0] < drafted[1]


def drafting_model(lm: LM, **changes: Any) -> Model:
    made = (
        DRAFTERS.card("model")
        .make(path="itself")
        .build(replace(toy_target(lm), load=lambda path: (lm, Letters()), **changes))
    )
    assert isinstance(made, Model)
    return made


def test_a_model_reads_prompts_at_the_pace_of_the_target() -> None:
    """Not a whole prompt in the step in which the target has read its beginning."""
    drafter = drafting_model(toy_lm(["attention"]), context=512)
    text = [n % VOCAB for n in range(300)]
    drafter.admit(0, text)
    for start in range(0, 300, 50):
        drafter.read([Piece(0, start, tuple(text[start : start + 50]))])
        assert start + 50 - 16 <= drafter._runner.cache.length(0) + 1 <= start + 51


def test_a_model_whose_row_gives_no_token_ends_that_draft_only() -> None:
    lm = toy_lm(["attention"], seed=3)
    drafter = drafting_model(lm)
    for rid, text in enumerate(([1, 2], [3, 4], [5, 6])):
        drafter.admit(rid, text)
    want = drafter.propose([Ask(rid, 5) for rid in range(3)])
    lm.embed.weight[4] = torch.nan
    assert all(4 not in draft.tokens for draft in (want[0], want[2]))
    got = drafter.propose([Ask(rid, 5) for rid in range(3)])
    assert got == [want[0], Draft(), want[2]]


def test_a_model_that_drafts_for_itself_knows_what_penalties_count() -> None:
    lm = toy_lm(["attention", "gated_delta"], seed=4)
    one = toy_engine(lm, drafter=drafting_model(lm), policies=nodes(6))
    for prompt in ([1, 2, 3, 1, 1, 2], [7] * 40, [5]):
        sampling = Sampling(temperature=0.7, seed=3, max_tokens=30, frequency_penalty=1.5, presence_penalty=1.0)
        one.add(prompt, sampling.resolve())
    while not one.is_idle:
        one.step()
    stats = one.drafting.stats
    assert stats.accepted == stats.drafted > 60


# -- jacobi ------------------------------------------------------------------------------------------------------------


def test_a_jacobi_guess_is_right_after_as_many_steps_as_it_has_tokens() -> None:
    """With the pending token right, row i is right after i steps: never more steps than plain decoding, often fewer."""
    lm, prompt, n = toy_lm(["attention", "attention"], seed=1), [3, 1, 4, 1, 5], 60
    one = toy_engine(lm, drafter=DRAFTERS.card("jacobi").make().build(toy_target(lm)), policies=nodes(12))
    request = one.add(prompt, Sampling(temperature=0, max_tokens=n).resolve())
    steps = 0
    while not one.is_idle:
        one.step()
        steps += 1
    assert request.output == plain_decode(lm, prompt, n) and steps < n


# -- suffix ------------------------------------------------------------------------------------------------------------


def suffix(**settings: float) -> Suffix:
    drafter = DRAFTERS.card("suffix").make(**settings).build(toy_target(toy_lm(["attention"])))
    assert isinstance(drafter, Suffix)
    return drafter


def occurrences(texts: Sequence[Sequence[int]], path: Sequence[int]) -> int:
    return sum(list(text[i : i + len(path)]) == list(path) for text in texts for i in range(len(text)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), min_size=1, max_size=6), st.integers(2, 5))
def test_counts_are_those_of_a_search_and_forgetting_undoes_them(texts: list[list[int]], depth: int) -> None:
    drafter = suffix(depth=depth, remember=40)
    for rid, text in enumerate(texts):
        drafter.admit(rid, text[:1])
        for token in text[1:]:
            drafter.observe([Round(rid, Draft(), Verdict((), (token,)))])
        drafter.release(rid, keep=True)
        kept = list(drafter._remembered)
        assert sum(map(len, kept)) <= 40 and kept == [tuple(t) for t in texts[: rid + 1][-len(kept) :]] * bool(kept)
        found: dict[tuple[int, ...], int] = {}
        queue = [((), drafter._earlier.root)]
        while queue:
            path, node = queue.pop()
            for token, child in node.children.items():
                found[(*path, token)] = child.count
                queue.append(((*path, token), child))
        wanted = {
            tuple(t[i : i + n]) for t in kept for i in range(len(t)) for n in range(1, depth + 1) if i + n <= len(t)
        }
        assert found == {path: occurrences(kept, path) for path in wanted}


def test_what_earlier_texts_said_is_proposed_as_a_tree() -> None:
    drafter = suffix(depth=8, least=0.2, factor=4.0)
    for rid, text in enumerate(([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 2, 3, 7, 8])):
        drafter.admit(rid, text)
        drafter.release(rid, keep=True)
    drafter.admit(9, [0, 1, 2])
    (draft,) = drafter.propose([Ask(9, 8)])
    # 3 follows always, 4 two times of three, then 5 or 6; 7 once, and then 8
    spelled = {tuple(draft.token(row) for row in path[1:]) for path in draft.tree.paths}
    assert spelled == {(), (3,), (3, 4), (3, 7), (3, 4, 5), (3, 4, 6), (3, 7, 8)}
    assert draft.tokens[:2] == (3, 4) and draft.scores is not None
    assert draft.scores[0] == 1.0 and draft.scores[1] == pytest.approx(2 / 3)
    (short,) = drafter.propose([Ask(9, 2)])
    assert short.tokens == (3, 4)
    drafter.release(9)
    assert len(drafter._remembered) == 3


def test_empty_texts_are_not_remembered() -> None:
    drafter = suffix()
    for rid in range(5):
        drafter.admit(rid, [])
        assert drafter.propose([Ask(rid, 8)]) == [Draft()]
        drafter.release(rid, keep=True)
    assert not drafter._remembered and not drafter._earlier.root.children


@pytest.mark.parametrize(
    "wrong",
    [{"depth": 1}, {"depth": 200}, {"remember": -1}, {"least": 0.0}, {"factor": 0.0}, {"factor": math.inf}],
    ids=str,
)
def test_suffix_refuses_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="suffix"):
        DRAFTERS.card("suffix").make(**wrong)
