"""The engine against plain decoding: any drafter, any batch, any budget, any shortage of memory, token for token."""

import random
from collections.abc import Sequence

import pytest
import torch
from drafters import Oracle, Saboteur, TreeOracle
from toy import VOCAB, WIRINGS, finish, lively_model, nodes, plain_decode, tiny, toy_config, toy_engine, toy_lm
from toy_channels import Tenants

from stretto.core.card import DRAFTERS, JUDGES, MIXERS, Can
from stretto.core.drafter import Ask, Draft, Drafter, Round, Target
from stretto.core.errors import UserError
from stretto.core.plan import StepPlan
from stretto.core.sampling import Sampling
from stretto.core.seqs import Seqs
from stretto.engine.engine import Engine
from stretto.models.lm import LM, Layer

NUM_TOKENS = 24
TARGET = Target(model=None, context=128, max_seqs=8, max_rows=64, vocab_size=VOCAB)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], list(range(VOCAB)) * 2, [5, 5, 5, 5, 5, 5]]


@pytest.fixture(scope="module")
def lm() -> LM:
    return toy_lm()


@pytest.fixture(scope="module")
def greedy(lm: LM) -> list[list[int]]:
    return [plain_decode(lm, prompt, NUM_TOKENS) for prompt in PROMPTS]


def drafter_named(name: str, known: dict[tuple[int, ...], list[int]]) -> Drafter | None:
    made = {
        "none": lambda: None,
        "ngram": lambda: DRAFTERS.card("ngram").make().build(TARGET),
        "oracle": lambda: Oracle(known),
        "saboteur": lambda: Saboteur(known, VOCAB),
        "tree saboteur": lambda: Saboteur(known, VOCAB, tree=True),
        "tree oracle": lambda: TreeOracle(known, VOCAB),
    }
    return made[name]()


def options(name: str, known: dict[tuple[int, ...], list[int]], *schedule: int) -> dict[str, object]:
    drafter = drafter_named(name, known)
    return {} if drafter is None else {"drafter": drafter, "policies": nodes(*(schedule or (5,)))}


def run_all(
    engine: Engine, sampling: Sampling, prompts: list[list[int]] = PROMPTS, patience: float = 0.0
) -> list[list[int]]:
    requests = [engine.add(prompt, sampling.resolve()) for prompt in prompts]
    outputs = finish(engine, patience)
    return [outputs[request.rid] for request in requests]


CONTROLS = ["none", "ngram", "oracle", "saboteur", "tree saboteur", "tree oracle"]


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("sizes", [{}, {"max_seqs": 1}, {"max_seqs": 2, "max_rows": 7}, {"pages": 9}])
def test_greedy_equals_plain_decoding(lm: LM, greedy: list[list[int]], name: str, sizes: dict[str, int]) -> None:
    known = {tuple(p): g for p, g in zip(PROMPTS, greedy, strict=True)}
    engine = toy_engine(lm, **sizes, **options(name, known, 5, 0, 9, 1))
    assert run_all(engine, Sampling(temperature=0, max_tokens=NUM_TOKENS)) == greedy
    if name == "oracle":
        assert engine.drafting.stats.accepted == engine.drafting.stats.drafted > 0
    if name == "saboteur":
        assert engine.drafting.stats.accepted == 0 < engine.drafting.stats.drafted


@pytest.mark.parametrize("mixer", [card.name for card in MIXERS.cards(Can.CAUSAL | Can.TREE)])
@pytest.mark.parametrize("name", ["saboteur", "tree oracle"])
def test_every_mixer_family_decodes_with_drafts(mixer: str, name: str) -> None:
    lm = toy_lm([mixer, mixer], seed=1)
    prompts = PROMPTS[:2]
    want = [plain_decode(lm, prompt, 16) for prompt in prompts]
    known = {tuple(p): g for p, g in zip(prompts, want, strict=True)}
    engine = toy_engine(lm, **options(name, known, 6))
    assert run_all(engine, Sampling(temperature=0, max_tokens=16), prompts) == want


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("name", ["none", "saboteur", "tree oracle"])
def test_every_wiring_decodes_with_drafts(wiring: str, name: str) -> None:
    lm = lively_model(WIRINGS[wiring])
    want = [plain_decode(lm, prompt, 16) for prompt in PROMPTS]
    known = {tuple(p): g for p, g in zip(PROMPTS, want, strict=True)}
    engine = toy_engine(lm, max_seqs=3, max_rows=30, **options(name, known, 6, 0, 3))
    assert run_all(engine, Sampling(temperature=0, max_tokens=16)) == want


@pytest.mark.parametrize("name", CONTROLS)
def test_the_same_seed_gives_the_same_text_with_any_drafts(lm: LM, name: str) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=11, max_tokens=NUM_TOKENS)
    want = [plain_decode(lm, prompt, NUM_TOKENS, sampling) for prompt in PROMPTS]
    assert len({tuple(w) for w in want}) > 1
    known = {tuple(p): g for p, g in zip(PROMPTS, want, strict=True)}
    engine = toy_engine(lm, pages=10, max_rows=40, **options(name, known, 7, 0, 3))
    assert run_all(engine, sampling) == want


def test_penalties_and_bans_see_the_tokens_of_a_draft(lm: LM) -> None:
    sampling = Sampling(
        temperature=0, repetition_penalty=1.3, frequency_penalty=0.7, presence_penalty=0.2, max_tokens=20
    )
    want = [plain_decode(lm, prompt, 20, sampling) for prompt in PROMPTS]
    known = {tuple(p): g for p, g in zip(PROMPTS, want, strict=True)}
    for name in ("saboteur", "tree oracle"):
        assert run_all(toy_engine(lm, **options(name, known, 6)), sampling) == want


class Moody(Drafter):
    """Sometimes right, sometimes wrong, sometimes silent: what rollback meets in real life."""

    def __init__(self, known: dict[tuple[int, ...], list[int]], seed: int) -> None:
        self.random = random.Random(seed)
        self.parts: list[Drafter] = [
            Oracle(known, 16),
            Saboteur(known, VOCAB, num_nodes=16),
            Saboteur(known, VOCAB, tree=True, num_nodes=16),
            TreeOracle(known, VOCAB, num_nodes=16),
        ]

    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        for part in self.parts:
            part.admit(rid, tokens)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        drafts = []
        for ask in asks:
            choices = [part.propose([ask])[0] for part in self.parts]
            drafts.append(self.random.choice([*choices, Draft()]).truncate(self.random.randint(0, ask.max_tokens)))
        return drafts

    def observe(self, rounds: Sequence[Round]) -> None:
        for part in self.parts:
            part.observe(rounds)

    def release(self, rid: int, keep: bool = False) -> None:
        for part in self.parts:
            part.release(rid)


def test_thousands_of_random_rounds_with_preemption_and_cancellation(lm: LM) -> None:
    """Drafts on a hybrid model stay exact through accept, reject, no draft, preemption and cancellation."""
    rng, length = random.Random(5), 90
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))] for _ in range(6)]
    want = {tuple(p): plain_decode(lm, p, length) for p in prompts}
    engine = toy_engine(
        lm, pages=20, max_seqs=5, max_rows=48, context=128, drafter=Moody(want, 3), policies=nodes(6, 0, 12, 2)
    )
    sampling = Sampling(temperature=0, max_tokens=length).resolve()
    live: dict[int, tuple[list[int], list[int]]] = {}
    rounds = cancelled = finished = 0
    known = set()
    while rounds < 2500:
        if len(live) < 6 and rng.random() < 0.3:
            prompt = rng.choice(prompts)
            request = engine.add(prompt, sampling)
            live[request.rid] = (prompt, [])
            known.add(request.job)
        if live and rng.random() < 0.01:
            rid = rng.choice(list(live))
            event = engine.cancel(rid)
            assert event is not None and event.finish_reason == "cancelled"
            del live[rid]
            cancelled += 1
        for event in engine.step():
            prompt, output = live[event.rid]
            output.extend(event.token_ids)
            assert output == want[tuple(prompt)][: len(output)]
            rounds += 1
            if event.finish_reason is not None:
                assert len(output) == length
                del live[event.rid]
                finished += 1
        if rounds % 10 == 0:
            engine.runner.cache.check()
    assert sum(job.num_preemptions for job in known) > 5 and cancelled > 5 and finished > 5
    assert engine.drafting.stats.accepted > 500 and engine.drafting.stats.drafted - engine.drafting.stats.accepted > 500
    for rid in list(live):
        engine.cancel(rid)
    engine.runner.cache.check()
    assert engine.is_idle and engine.runner.cache.free_blocks == engine.runner.cache.pools.num_pages


class Fixed(Drafter):
    """Proposes the same token every time."""

    def __init__(self, token: int) -> None:
        self.token = token

    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        """Nothing to keep."""

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [Draft((self.token,)) for _ in asks]

    def observe(self, rounds: Sequence[Round]) -> None:
        """Nothing to learn."""

    def release(self, rid: int, keep: bool = False) -> None:
        """Nothing to forget."""


def test_the_ratio_judge_keeps_the_law_through_the_engine() -> None:
    """Three tokens with drafts under the ratio judge against their exact probabilities: chi-square."""
    from scipy.stats import chisquare

    lm = toy_lm(["attention"], seed=4)
    prompt, sampling = [1, 2, 3, 2, 3], Sampling(temperature=1.0, top_k=3, max_tokens=3)

    def law(tokens: list[int]) -> dict[int, float]:
        top = lm(StepPlan.of([tokens]))[-1].topk(3)
        return dict(zip(top.indices.tolist(), top.values.softmax(0).tolist(), strict=True))

    exact: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):  # the first token comes from the prompt's own step, the second can be drafted
        exact = {(*t, x): p * q for t, p in exact.items() for x, q in law([*prompt, *t]).items()}
    likely = max(exact, key=exact.__getitem__)
    counts = dict.fromkeys(exact, 0)
    n, batch = 4000, 32
    engine = toy_engine(lm, judge=JUDGES.card("ratio").make(), drafter=Fixed(likely[1]), policies=nodes(1))
    for first in range(0, n, batch):
        for seed in range(first, first + batch):
            engine.add(prompt, Sampling(**{**_fields(sampling), "seed": seed}).resolve())
        for output in finish(engine).values():
            counts[tuple(output)] += 1
    cells = sorted(exact)
    result = chisquare([counts[c] for c in cells], [exact[c] * n for c in cells])
    assert result.pvalue > 1e-3
    assert engine.drafting.stats.accepted > 0


def _fields(sampling: Sampling) -> dict[str, object]:
    return {name: getattr(sampling, name) for name in Sampling.names()}


def test_ends_of_text(lm: LM, greedy: list[list[int]]) -> None:
    """Stop ids, limits and the context cut a text inside an accepted run; min_tokens bans the end."""
    output = greedy[0]
    stop = output[10]
    first = output.index(stop)
    known = {tuple(PROMPTS[0]): output}
    for name in ("none", "oracle"):
        engine = toy_engine(lm, eos_ids=frozenset([stop]), **options(name, known, 8))
        assert run_all(engine, Sampling(temperature=0), PROMPTS[:1]) == [output[: first + 1]]
        assert run_all(engine, Sampling(temperature=0, ignore_eos=True, max_tokens=20), PROMPTS[:1]) == [output[:20]]
        engine = toy_engine(lm, context=16, **options(name, known, 8))
        assert run_all(engine, Sampling(temperature=0), PROMPTS[:1]) == [output[:8]]
    for name in ("none", "ngram"):
        engine = toy_engine(lm, eos_ids=frozenset([stop]), **options(name, known, 8))
        longer = run_all(engine, Sampling(temperature=0, min_tokens=first + 2, max_tokens=20), PROMPTS[:1])[0]
        assert len(longer) >= first + 2 and stop not in longer[: first + 2]


def test_the_tags_of_a_request_reach_its_rows() -> None:
    """Two adapters in one batch, with drafts and prompts in pieces: each as if it were alone."""
    layers = [Layer(mixer=tiny(MIXERS, "attention"), channel=Tenants())] * 2
    lm = lively_model(toy_config(layers))

    def alone(prompt: list[int], adapter: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(NUM_TOKENS):
            seqs = Seqs.of([len(tokens)], tags={"adapter": [adapter] * len(tokens)})
            tokens.append(int(lm(StepPlan(tokens, seqs, [len(tokens) - 1])).argmax()))
        return tokens[len(prompt) :]

    prompts = [(prompt, adapter) for prompt in PROMPTS[:3] for adapter in (1, 2)]
    want = [alone(prompt, adapter) for prompt, adapter in prompts]
    assert len({tuple(text) for text in want}) == len(want), "adapters change the text"
    drafter = DRAFTERS.card("jacobi").make().build(TARGET)
    engine = toy_engine(lm, max_rows=30, drafter=drafter, policies=nodes(4))
    sampling = Sampling(temperature=0, max_tokens=NUM_TOKENS).resolve()
    requests = [engine.add(prompt, sampling, tags={"adapter": adapter}) for prompt, adapter in prompts]
    outputs = finish(engine)
    assert [outputs[request.rid] for request in requests] == want


def test_logprobs_are_the_models_own(lm: LM) -> None:
    known = {tuple(PROMPTS[0]): plain_decode(lm, PROMPTS[0], 8)}
    engine = toy_engine(lm, **options("oracle", known, 3))
    engine.add(PROMPTS[0], Sampling(temperature=0, max_tokens=8, logprobs=3).resolve())
    tokens = list(PROMPTS[0])
    while not engine.is_idle:
        for event in engine.step():
            for token, got in zip(event.token_ids, event.logprobs, strict=True):
                want = lm(StepPlan.of([tokens]))[-1].float().log_softmax(-1)
                assert got.logprob == pytest.approx(want[token].item(), abs=1e-5)
                assert list(got.top) == want.topk(3).indices.tolist()
                tokens.append(token)


def test_bad_requests_are_refused_before_anything_is_allocated(lm: LM) -> None:
    engine = toy_engine(lm, context=16)
    sampling = Sampling().resolve()
    for prompt in ([], [VOCAB], [-1], [True], [1] * 16):
        with pytest.raises(UserError):
            engine.add(prompt, sampling)
    with pytest.raises(UserError, match="stop strings"):
        engine.add([1], Sampling(stop="x").resolve())
    with pytest.raises(UserError, match="does not exist"):
        engine.add([1], Sampling(logit_bias={VOCAB: 1.0}).resolve())
    assert engine.is_idle


def test_two_engines_do_not_disturb_each_other(lm: LM, greedy: list[list[int]]) -> None:
    other = toy_lm(["gated_delta"], seed=9)
    want = plain_decode(other, PROMPTS[0], NUM_TOKENS)
    engines = toy_engine(lm), toy_engine(other)
    outputs: tuple[list[int], list[int]] = ([], [])
    for engine in engines:
        engine.add(PROMPTS[0], Sampling(temperature=0, max_tokens=NUM_TOKENS).resolve())
    while not all(engine.is_idle for engine in engines):
        for engine, output in zip(engines, outputs, strict=True):
            for event in engine.step():
                output.extend(event.token_ids)
    assert outputs == (greedy[0], want)


def test_weights_that_break_for_a_while_end_what_ran_meanwhile(lm: LM, greedy: list[list[int]]) -> None:
    engine = toy_engine(lm)
    engine.add(PROMPTS[0], Sampling(temperature=0, max_tokens=4).resolve())
    engine.step()
    weight = lm.head.weight  # type: ignore[union-attr]
    kept = weight.clone()
    weight.fill_(torch.nan)
    (event,) = engine.step()
    assert event.finish_reason == "error" and isinstance(event.error, UserError) and "NaN" in str(event.error)
    weight.copy_(kept)
    assert engine.is_idle
    engine.runner.cache.check()
    assert run_all(engine, Sampling(temperature=0, max_tokens=NUM_TOKENS)) == greedy
