"""Texts that begin like earlier ones: the same tokens and log-probabilities to the bit, whatever is reused, by whom,
with which drafts, in how little memory."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from native import team
from test_engine import options
from test_native import MODELS, tiled
from toy import VOCAB, finish, lively_model, nodes, plain_decode, toy_lm

from stretto.cache.evict.lru import LRU
from stretto.cache.evict.marconi import Marconi
from stretto.core.drafter import Ask, Draft, Drafter, Needs, Piece, Round
from stretto.core.policy import EvictPolicy, Worth
from stretto.core.sampling import Sampling
from stretto.core.tree import Tree
from stretto.engine.engine import Engine
from stretto.engine.request import Event
from stretto.engine.scheduler import Policies
from stretto.models.lm import LM
from stretto.runner.runner import Sizes

GREEDY = Sampling(temperature=0, max_tokens=20)
SEEN = Sampling(temperature=0, max_tokens=20, logprobs=3)
MUCH = 1 << 20


def make(
    lm: LM, *, prefix_bytes: int = MUCH, evict: EvictPolicy | None = None, policies: Policies | None = None, **how: Any
) -> Engine:
    """A native engine that reuses texts."""
    names = ("max_seqs", "max_rows", "memory_bytes", "context", "kv")
    sizes = {"context": 512, "max_seqs": 4, **{name: how.pop(name) for name in names if name in how}}
    draft = policies.draft if policies is not None else None
    chosen = Policies(draft=draft, evict=evict or LRU())
    return Engine(lm, Sizes(**sizes, prefix_bytes=prefix_bytes), policies=chosen, threads=team(), **how)


def run(engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling = SEEN) -> list[tuple[Any, ...]]:
    """Tokens, log-probabilities and cached tokens of every prompt, which run together."""
    requests = [engine.add(prompt, sampling.resolve(), child=i) for i, prompt in enumerate(prompts)]
    events: dict[int, list[Event]] = {}
    while not engine.is_idle:
        for event in engine.step():
            assert event.error is None
            events.setdefault(event.rid, []).append(event)
    engine.runner.cache.check()
    return [
        (
            tuple(token for event in events[one.rid] for token in event.token_ids),
            [entry for event in events[one.rid] for entry in event.logprobs],
            one.job.cached,
        )
        for one in requests
    ]


class Guess(Drafter):
    """Of texts that are known, trees in which what comes next is right, wrong or missing; of others, random ones."""

    def __init__(self, known: Sequence[Sequence[int]], seed: int) -> None:
        self.random, self._known, self._held = random.Random(seed), [list(one) for one in known], dict[int, list[int]]()

    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        self._held[rid] = list(tokens)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [self._draft(self._held[ask.rid], self.random.randrange(ask.max_tokens + 1)) for ask in asks]

    def observe(self, rounds: Sequence[Round]) -> None:
        for one in rounds:
            self._held[one.rid] += one.verdict.emitted

    def release(self, rid: int, keep: bool = False) -> None:
        del self._held[rid]

    def _draft(self, held: list[int], num_nodes: int) -> Draft:
        rest = next((one[len(held) :] for one in self._known if one[: len(held)] == held), [])
        parents = [self.random.choice((row, row, self.random.randrange(row + 1))) for row in range(num_nodes)]
        tree = Tree.drafted(parents)
        depths = [depth - 1 for depth in tree.depths[1:]]
        right = [
            rest[d] if d < len(rest) and self.random.random() < 0.8 else self.random.randrange(VOCAB) for d in depths
        ]
        return Draft(tuple(right), tree)


def text(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


@pytest.fixture(scope="module", params=MODELS)
def lm(request: pytest.FixtureRequest) -> LM:
    made = MODELS[request.param]
    return tiled(lively_model(made["config"]) if "config" in made else toy_lm(**made))


@pytest.fixture(scope="module", params=["hybrid", "attention with a window and sinks", "mamba"])
def some(request: pytest.FixtureRequest) -> LM:
    """States and pages, pages that are given back, states of another kind."""
    return tiled(toy_lm(**MODELS[request.param]))


@pytest.fixture(scope="module")
def hybrid() -> LM:
    return tiled(toy_lm(["gated_delta", "attention", "mamba2"]))


def has_states(engine: Engine) -> bool:
    return engine.runner.cache.pools.has_slots


def test_a_conversation_goes_on_with_the_bits_of_a_cold_start(lm: LM) -> None:
    """Three turns: each is the text of the one before, its answer, and more. With right and wrong drafts, and none."""
    cold, known, turn = make(lm, prefix_bytes=0), dict[tuple[int, ...], list[int]](), text(1, 75)
    turns, want = [], []
    for i in range(3):
        turns.append(list(turn))
        want += run(cold, [turn])
        known[tuple(turn)] = list(want[-1][0])
        turn = [*turn, *want[-1][0], *text(2 + i, 9)]
    for name in ("none", "tree oracle", "saboteur"):
        warm = make(lm, **options(name, known, 5, 0, 3))
        for i, (prompt, (tokens, logprobs, _)) in enumerate(zip(turns, want, strict=True)):
            found = run(warm, [prompt])[0]
            assert found[:2] == (tokens, logprobs)
            if i:  # all but the last token of the answer, which was not fed, or whole pages of that
                assert found[2] >= (len(turns[i - 1]) + len(tokens) - 1) // 16 * 16


def test_the_same_prompt_again_and_the_third_with_a_beginning(lm: LM) -> None:
    shared, cold = text(3, 150), make(lm, prefix_bytes=0)
    prompts = [[*shared, *text(10 + i, 40)] for i in range(4)]
    prompts.append(prompts[0])
    want, warm = [run(cold, [prompt])[0] for prompt in prompts], make(lm)
    found = [run(warm, [prompt])[0] for prompt in prompts]
    assert [one[:2] for one in found] == [one[:2] for one in want]
    cached = [one[2] for one in found]
    assert cached[0] == 0 and cached[2] == cached[3] == 144
    assert cached[1] == (0 if has_states(warm) else 144)  # a state is kept where a second text parts
    assert cached[4] >= 176


def test_prompts_that_come_together_wait_for_the_first(some: LM) -> None:
    lm, shared, cold = some, text(4, 200), make(some, prefix_bytes=0)
    prompts = [[*shared, *text(20 + i, 30)] for i in range(4)]
    want, warm = [run(cold, [prompt])[0] for prompt in prompts], make(lm)
    found = run(warm, prompts)
    assert [one[:2] for one in found] == [one[:2] for one in want]
    assert [one[2] for one in found] == [0, 192, 192, 192]


def test_a_policy_knows_what_the_tokens_of_this_model_cost(some: LM) -> None:
    known: list[Worth] = []

    class Curious(LRU):
        def know(self, worth: Worth) -> None:
            known.append(worth)

    layout, cost = make(some, evict=Curious()).runner.cache.pools.layout, some.token_cost
    sizes = {"page_bytes": sum(layout.page_bytes.values()), "slot_bytes": layout.slot_bytes}
    assert known == [Worth(per_token=cost.per_token, per_pair=cost.per_pair, **sizes)]
    assert cost.per_token > 0


@pytest.mark.parametrize("evict", [LRU(), Marconi(alpha=2.0)], ids=["lru", "marconi"])
@pytest.mark.parametrize("seed", range(2))
def test_replays_among_others_in_little_memory(some: LM, evict: EvictPolicy, seed: int) -> None:
    """Twelve replays of a conversation among random texts, drafts, preemption and cancellation mixed in: one answer."""
    lm, rng, cold = some, random.Random(seed), make(some, prefix_bytes=0)
    turns = [text(50, 70)]
    for i in range(2):
        turns.append([*turns[-1], *run(cold, [turns[-1]])[0][0], *text(60 + i, 20)])
    want = {tuple(turn): list(run(cold, [turn])[0][0]) for turn in turns}
    layout = cold.runner.cache.pools.layout
    memory = 24 * sum(layout.page_bytes.values()) + 12 * layout.slot_bytes
    tight = make(
        lm, evict=evict, memory_bytes=memory, prefix_bytes=memory // 2, context=200, max_rows=40,
        drafter=Guess([[*prompt, *answer] for prompt, answer in want.items()], seed), policies=nodes(6, 0, 3),
    )  # fmt: skip
    cached = 0
    for _ in range(12):
        for turn in turns:
            others = [text(rng.randrange(1000), rng.randrange(1, 90)) for _ in range(rng.randrange(3))]
            others += [turn[: rng.randrange(1, len(turn))]] * rng.randrange(2)
            bystanders = [tight.add(other, GREEDY.resolve(), tenant="other") for other in others]
            for _ in range(rng.randrange(3)):
                tight.step()
            mine = tight.add(turn, GREEDY.resolve())
            if bystanders and rng.random() < 0.5:
                tight.cancel(rng.choice(bystanders).rid)
            assert finish(tight)[mine.rid] == want[tuple(turn)]
            tight.runner.cache.check()
            cached += mine.job.cached or 0
    assert cached > 0, "nothing was reused"


def test_other_spaces_and_adapters_share_nothing(hybrid: LM) -> None:
    engine, prompt = make(hybrid), text(5, 100)
    first, other, tagged = (
        engine.add(prompt, GREEDY.resolve(), space=space, tags=tags)
        for space, tags in (("a", {}), ("b", {}), ("a", {"adapter": 1}))
    )
    finish(engine)
    again = engine.add(prompt, GREEDY.resolve(), space="a")
    finish(engine)
    assert first.job.cached == other.job.cached == tagged.job.cached == 0 < (again.job.cached or 0)


def test_preempted_requests_go_on_from_where_they_were(hybrid: LM) -> None:
    prompts = [text(i, 60) for i in range(4)]
    want = [run(make(hybrid, prefix_bytes=0), [p], GREEDY)[0][0] for p in prompts]
    layout = make(hybrid).runner.cache.pools.layout
    memory = 16 * sum(layout.page_bytes.values()) + 14 * layout.slot_bytes
    engine = make(hybrid, memory_bytes=memory, prefix_bytes=memory // 2, context=100)
    requests = [engine.add(prompt, GREEDY.resolve()) for prompt in prompts]
    outputs = finish(engine)
    assert [tuple(outputs[one.rid]) for one in requests] == want
    assert any(one.job.num_preemptions for one in requests), "memory was not short"


def test_many_requests_with_a_long_beginning_on_a_hybrid(hybrid: LM) -> None:
    """1,500 shared tokens, 700 of its own, 64 requests: at least 60 find the beginning (vLLM issue 45238: none)."""
    engine = make(hybrid, context=2304, max_seqs=8, max_rows=512, prefix_bytes=8 << 20, memory_bytes=64 << 20)
    shared, sampling = text(6, 1500), Sampling(temperature=0, max_tokens=2).resolve()
    requests = [engine.add([*shared, *text(100 + i, 700)], sampling) for i in range(64)]
    finish(engine)
    assert sum((one.job.cached or 0) >= 1488 for one in requests) >= 60
    engine.runner.cache.check()


@pytest.mark.parametrize("mixers", [["attention"], ["gated_delta", "attention", "mamba2"]])
def test_through_torch_only_prompts_are_reused_where_chunks_begin(mixers: list[str]) -> None:
    lm, shared = toy_lm(mixers), text(7, 150)
    sizes = Sizes(context=512, max_seqs=4, prefix_bytes=MUCH)
    engine = Engine(lm, sizes, policies=Policies(evict=LRU()))
    prompts = [[*shared, *text(30 + i, 20)] for i in range(3)]
    for prompt in prompts:
        request = engine.add(prompt, GREEDY.resolve())
        assert finish(engine)[request.rid] == plain_decode(lm, prompt, 20)
        engine.runner.cache.check()
    assert request.job.cached == 128
    longer = engine.add([*prompts[0], *plain_decode(lm, prompts[0], 20), 1], GREEDY.resolve())
    finish(engine)
    assert longer.job.cached == 128


def test_pages_that_nobody_uses_are_limited(hybrid: LM) -> None:
    page_bytes = sum(make(hybrid).runner.cache.pools.layout.page_bytes.values())
    engine = make(hybrid, prefix_bytes=10 * page_bytes, memory_bytes=MUCH)
    for i in range(8):
        engine.add(text(i, 100), GREEDY.resolve())
        finish(engine)
        assert all(pool.num_idle <= 10 for pool in engine.runner.cache.ledger.blocks)
    assert any(pool.num_idle for pool in engine.runner.cache.ledger.blocks)


def test_what_was_not_a_number_is_left_to_nobody(hybrid: LM) -> None:
    engine, prompt = make(hybrid), text(8, 90)
    broken = engine.add(prompt, Sampling(temperature=0, logit_bias={}, max_tokens=4).resolve())
    engine.step()
    for tensor in engine.runner.cache.pools.tensors:
        tensor[:, 1:] = torch.nan
    events = engine.step()
    assert [event.finish_reason for event in events if event.rid == broken.rid] == ["error"]
    pool = engine.runner.cache.ledger.blocks[0]
    assert pool.num_idle <= len(prompt) // 16  # what was published while it was a number


def test_a_drafter_reads_what_the_cache_had(hybrid: LM) -> None:
    """`read` hears of every row once, in order, also of those that were not computed."""
    heard: dict[int, list[int]] = {}
    drafter = Guess([], 1)
    drafter.needs = Needs(rows=True)

    def read(pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            own = heard.setdefault(piece.rid, [])
            assert len(own) == piece.start
            own += piece.tokens

    drafter.read = read  # type: ignore[method-assign]
    engine, prompt = make(hybrid, drafter=drafter, policies=nodes(3)), text(9, 90)
    for _ in range(2):
        request = engine.add(prompt, GREEDY.resolve())
        finish(engine)
        assert heard[request.rid] == list(request.tokens)[: len(heard[request.rid])]
        assert len(heard[request.rid]) >= len(prompt)
    assert request.job.cached


def test_sequences_that_begin_alike_are_attended_together(some: LM) -> None:
    """Beginnings of 600 tokens and, of half of them, 300 more: decoding reads shared pages once, with the same bits."""
    shared, more = text(11, 600), text(12, 300)
    prompts = [[*shared, *(more if i % 2 else []), *text(70 + i, 20 + i)] for i in range(8)]
    cold, warm = (make(some, max_seqs=8, context=1200, prefix_bytes=n) for n in (0, MUCH << 3))
    want = [run(cold, [prompt])[0] for prompt in prompts]
    found: list[list[int]] = []
    pack = warm.runner.cache.pack

    def seen(*args: Any) -> Any:
        caches = pack(*args)
        found.extend(list(own.num_shared) for own in caches.placement.pages if own.num_shared is not None)
        return caches

    warm.runner.cache.pack = seen  # type: ignore[method-assign]
    assert [one[:2] for one in run(warm, prompts)] == [one[:2] for one in want]
    if any(group.window is None for group in warm.runner.cache.pools.layout.groups):
        together = [shared for shared in found if len(shared) == 8]
        assert together and sorted(together[-1]) == [0, 592, *[592] * 3, *[896] * 3]


def test_a_text_that_ends_inside_a_draft_leaves_its_state(hybrid: LM) -> None:
    """Nothing behind the end of a text is committed, so the state is that of the text."""
    prompt = text(13, 40)
    answer = list(run(make(hybrid, prefix_bytes=0), [prompt])[0][0])
    stop = next(i for i, token in enumerate(answer) if i >= 3 and token not in answer[:i])
    engine = make(hybrid, **options("oracle", {tuple(prompt): answer}, 15))
    sampling = Sampling(temperature=0, max_tokens=20, stop_token_ids=[answer[stop]]).resolve()
    first = engine.add(prompt, sampling)
    outputs = finish(engine)
    assert outputs[first.rid] == answer[: stop + 1] and engine.drafting.stats.accepted >= stop - 1
    again = engine.add([*prompt, *answer[: stop + 1], 1], GREEDY.resolve())
    engine.step()
    assert again.job.cached == len(prompt) + stop
    engine.cancel(again.rid)
