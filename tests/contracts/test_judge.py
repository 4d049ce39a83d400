"""Laws of the `Judge` socket: emitted tokens follow plain sampling, by integration and by statistics.

`integrate` runs a judge on every outcome of its uniform draws: what a judge does is a step function of each u, so
bisection finds the steps to 2^-52, and the law of the verdicts is a sum of products of step widths.
"""

import itertools
import random
from collections import defaultdict

import pytest
import torch
from scipy import stats

from stretto.core.card import JUDGES, Can
from stretto.core.drafter import Draft
from stretto.core.sampling import Noise, Sampling
from stretto.core.tree import Tree
from stretto.engine.judges.ratio import Ratio, accepts, inverse, residual
from stretto.kernels.sampling import Purpose, RowSampling, gumbel, picks, probs

W, NOISE = 4, Noise(0)
Text = tuple[int, ...]


def _behaviour(judge, draft, rows, position, given):
    """The verdict if all draws after the given ones are 1/2, and whether the given ones decided it alone.

    Every outcome of the last given draw shows in the verdict: as a token, as a node moved to, or as no move.
    """
    asked = []

    def source(noise, at, purpose):
        asked.append((at, purpose))
        return given[len(asked) - 1] if len(asked) <= len(given) else 0.5

    verdict = judge(source).judge(draft, rows, position, NOISE)
    assert len(set(asked)) == len(asked), "one draw was used twice"
    return verdict, len(asked) <= len(given)


def _pieces(behaviour, low, high, at_low, at_high):
    """(width, u inside, behaviour) of pieces that make up the steps between two points; equal ends mean one step."""
    if at_low == at_high or high - low < 2.0**-50:
        return [(high - low, low, at_low)]
    middle = (low + high) / 2
    at_middle = behaviour(middle)
    return _pieces(behaviour, low, middle, at_low, at_middle) + _pieces(behaviour, middle, high, at_middle, at_high)


def integrate(judge, draft, rows, position=5, given=(), weight=1.0):
    """Verdict -> probability, over the draws of `judge` (a factory that takes the source of uniforms)."""
    found, decided = _behaviour(judge, draft, rows, position, given)
    if decided:
        return {found: weight}
    low, high = 2.0**-60, 1 - 2.0**-53
    at = lambda u: _behaviour(judge, draft, rows, position, (*given, u))  # noqa: E731
    steps: dict[object, tuple[float, float]] = {}
    for width, u, behaviour in _pieces(at, low, high, at(low), at(high)):
        steps[behaviour] = (steps.get(behaviour, (0.0, u))[0] + width, u)
    total = defaultdict(float)
    for width, u in steps.values():
        for verdict, p in integrate(judge, draft, rows, position, (*given, u), weight * width).items():
            total[verdict] += p
    return total


def random_law(rng, zeros=True):
    weights = [0.0 if zeros and rng.random() < 0.3 else rng.random() ** 3 for _ in range(W)]
    weights[rng.randrange(W)] += 0.1
    return torch.tensor([w / sum(weights) for w in weights], dtype=torch.float64)


def toy_model(rng):
    """Text so far -> law of the next token; one fixed random law per text."""
    laws = {}
    return lambda text: laws.setdefault(text, random_law(rng))


def rows_of(model, draft):
    """[N + 1, W]: the target's law after the pending token and after every node."""
    texts: list[Text] = []
    for path in draft.tree.paths:
        texts.append(tuple(draft.token(row) for row in path[1:]))
    return torch.stack([model(text) for text in texts])


def completed(model, verdicts, length):
    """The law of the first `length` tokens, if plain sampling continues after every verdict."""
    law = defaultdict(float)
    for verdict, weight in verdicts.items():
        rest = max(0, length - len(verdict.emitted))
        for tail in itertools.product(range(W), repeat=rest):
            text, p = verdict.emitted, weight
            for token in tail:
                p *= float(model(text)[token])
                text = (*text, token)
            law[text[:length]] += p
    return law


def plain_law(model, length):
    return completed(model, {type("Nothing", (), {"emitted": ()}): 1.0}, length)


def check_equal(got, want, atol=1e-12):
    assert max(abs(got.get(k, 0.0) - want.get(k, 0.0)) for k in {*got, *want}) < atol


def g_test(count, want):
    """The p-value of counts under a law; a text of probability 0 must not occur."""
    alive, trials = [k for k, p in want.items() if p > 0], sum(count.values())
    assert sum(count[k] for k in alive) == trials
    expected = [trials * want[k] for k in alive]
    return stats.power_divergence([count[k] for k in alive], expected, lambda_="log-likelihood").pvalue


TREES = [(0, 0), (0, 1, 1), (0, 0, 1, 2), (0, 0, 0, 2), (0, 1, 2, 2)]  # what rows 1, 2, ... continue


# -- every judge ---------------------------------------------------------------------------------------------------


def _rows(judge, logits, sampling, position, depths):
    head = [RowSampling(sampling, Noise(3), position + d) for d in depths]
    return (picks if judge.head == "picks" else probs)(logits, head)


def _sampling(card):
    return Sampling(temperature=0.9 if Can.SAMPLED in card.can else 0.0).resolve()


@pytest.mark.parametrize("card", JUDGES.cards(), ids=lambda c: c.name)
def test_an_empty_draft_gives_one_token_that_the_model_allows(card):
    judge, sampling = card.make(), _sampling(card)
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0]])
    verdict = judge.judge(Draft(), _rows(judge, logits, sampling, 9, [0]), 9, Noise(3))
    assert verdict.path == () and len(verdict.emitted) == 1 and verdict.emitted[0] in {1, 3}


@pytest.mark.parametrize("card", JUDGES.cards(Can.TREE), ids=lambda c: c.name)
def test_the_path_is_a_root_path_and_spells_what_is_emitted(card):
    rng, judge, sampling = random.Random(2), card.make(), _sampling(card)
    deepest = 0
    for trial in range(600):
        n = rng.randrange(0, 12)
        tree = Tree.drafted([rng.randrange(row) for row in range(1, n + 1)])
        draft = Draft(tuple(rng.randrange(W) for _ in range(n)), tree)
        logits = torch.randn(n + 1, W)
        verdict = judge.judge(draft, _rows(judge, logits, sampling, trial, tree.depths), trial, Noise(3))
        last = 0
        for row in verdict.path:
            assert tree.parents[row] == last
            last = row
        assert verdict.emitted[:-1] == tuple(draft.token(row) for row in verdict.path)
        assert verdict.emitted[-1] not in [draft.token(child) for child in tree.children[last]]
        deepest = max(deepest, len(verdict.path))
    assert deepest >= 3


# -- head `picks` ----------------------------------------------------------------------------------------------------


def _generate(card, logits_of, draft_of, sampling, seed, length):
    """A text from one judge over a toy model, with its own rounds."""
    judge, text = card.make(), ()
    while len(text) < length:
        draft = draft_of(text)
        texts = [(*text, *(draft.token(row) for row in path[1:])) for path in draft.tree.paths]
        rows = [RowSampling(sampling, Noise(seed), len(t), output=t) for t in texts]
        chosen = picks(torch.stack([logits_of(t) for t in texts]), rows)
        text += judge.judge(draft, chosen, len(text), Noise(seed)).emitted
    return text[:length]


@pytest.mark.parametrize("card", [c for c in JUDGES.cards() if c.make().head == "picks"], ids=lambda c: c.name)
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_the_text_is_plain_decodings_for_any_draft(card, penalty):
    laws, rng = {}, random.Random(4)
    generator = torch.Generator().manual_seed(1)
    logits_of = lambda text: laws.setdefault(text[-3:], torch.randn(W, generator=generator) * 2)  # noqa: E731
    sampling = Sampling(temperature=_sampling(card).temperature, top_k=3, presence_penalty=penalty).resolve()

    def random_draft(_text):
        n = rng.randrange(0, 6)
        is_tree = Can.TREE in card.can and rng.random() < 0.5
        tree = Tree.drafted([rng.randrange(row) if is_tree else row - 1 for row in range(1, n + 1)])
        return Draft(tuple(rng.randrange(W) for _ in range(n)), tree)

    for seed in range(10):
        plain = _generate(card, logits_of, lambda _text: Draft(), sampling, seed, 24)
        assert _generate(card, logits_of, random_draft, sampling, seed, 24) == plain
        oracle = lambda text, plain=plain: Draft(plain[len(text) : len(text) + 5])  # noqa: E731
        assert _generate(card, logits_of, oracle, sampling, seed, 24) == plain


def test_the_coupled_law_is_the_plain_law_also_for_drafts_drawn_with_the_same_noise():
    coupled, model, count = JUDGES.card("coupled").make(), toy_model(random.Random(8)), defaultdict(int)
    draft_law, length, trials, accepted = random_law(random.Random(9), zeros=False), 2, 4000, 0
    want = plain_law(model, length)
    sampling = Sampling(temperature=1.0).resolve()
    for seed in range(trials):
        noise = Noise(seed)
        drafted = int((draft_law.log() + gumbel(noise, 3, Purpose.TOKEN, range(W))).argmax())
        draft = Draft((drafted,))
        rows = [RowSampling(sampling, noise, 3 + d) for d in (0, 1)]
        verdict = coupled.judge(draft, picks(rows_of(model, draft).log(), rows), 3, noise)
        text = verdict.emitted
        if len(text) < length:
            text += (int(picks(model(text).log()[None], rows[1:])[0]),)
        count[text] += 1
        accepted += len(verdict.path)
    assert g_test(count, want) > 1e-4
    distance = float((model(()) - draft_law).abs().sum()) / 2
    assert accepted / trials > (1 - distance) / (1 + distance) - 0.02


# -- ratio -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length", [0, 1, 2])
def test_ratio_law_of_drawn_chains_by_integration(seed, length):
    rng = random.Random(seed)
    model, draft_model = toy_model(rng), toy_model(rng)
    got = defaultdict(float)
    for tokens in itertools.product(range(W), repeat=length):
        laws = [draft_model(tokens[:i]) for i in range(length)]
        weight = torch.tensor([q[t] for q, t in zip(laws, tokens, strict=True)], dtype=torch.float64).prod().item()
        if weight == 0:
            continue
        draft = Draft(tokens, probs=torch.stack(laws) if laws else None)
        verdicts = integrate(Ratio, draft, rows_of(model, draft))
        for text, p in completed(model, verdicts, length + 1).items():
            got[text] += weight * p
    check_equal(got, plain_law(model, length + 1))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("parents", [None, *TREES], ids=str)
def test_ratio_law_of_chosen_drafts_by_integration(seed, parents):
    rng = random.Random(seed)
    model = toy_model(rng)
    n = 3 if parents is None else len(parents)
    draft = Draft(tuple(rng.randrange(W) for _ in range(n)), None if parents is None else Tree.drafted(parents))
    verdicts = integrate(Ratio, draft, rows_of(model, draft))
    check_equal(completed(model, verdicts, n + 1), plain_law(model, n + 1))


def test_ratio_acceptance_is_the_best_possible():
    rng = random.Random(3)
    for _ in range(10):
        p, q = random_law(rng), random_law(rng)
        accepted = 0.0
        for token in range(W):
            verdicts = integrate(Ratio, Draft((token,), probs=q[None]), torch.stack([p, p]))
            accepted += float(q[token]) * sum(w for v, w in verdicts.items() if v.path)
        assert accepted == pytest.approx(float(torch.minimum(p, q).sum()), abs=1e-12)


def test_integration_notices_a_biased_judge():
    rng = random.Random(0)
    model, q = toy_model(rng), random_law(rng, zeros=False)

    def law_with(handed_over):
        got = defaultdict(float)
        for token in range(W):
            draft = Draft((token,), probs=handed_over[None])
            for text, p in completed(model, integrate(Ratio, draft, rows_of(model, draft)), 2).items():
                got[text] += float(q[token]) * p
        return got

    check_equal(law_with(q), plain_law(model, 2))
    with pytest.raises(AssertionError):  # the commonest bug: not the law that the token was drawn from
        check_equal(law_with(q.sqrt() / q.sqrt().sum()), plain_law(model, 2), atol=1e-3)


def _ratio_counts(handed_over, trials=5000):
    """Ratio with the real noise: the draft is drawn from a law, another may be handed over."""
    rng = random.Random(8)
    model, q, judge = toy_model(rng), random_law(rng, zeros=False), Ratio()
    count = defaultdict(int)
    for seed in range(trials):
        noise = Noise(seed)
        token = int((q.log() + gumbel(noise, 5, Purpose.DRAFT, range(W))).argmax())
        draft = Draft((token,), probs=handed_over(q)[None])
        text = judge.judge(draft, rows_of(model, draft), 5, noise).emitted
        if len(text) < 2:
            text += judge.judge(Draft(), model(text)[None], 6, noise).emitted
        count[text] += 1
    return g_test(count, plain_law(model, 2))


def test_ratio_law_over_seeds_and_the_power_of_this_test():
    assert _ratio_counts(lambda q: q) > 1e-4
    assert _ratio_counts(lambda q: q.sqrt() / q.sqrt().sum()) < 1e-4


def test_ratio_emits_one_text_for_a_seed_whatever_was_chosen():
    rng, judge = random.Random(1), Ratio()
    model = toy_model(rng)
    for seed in range(30):
        plain = ()
        for depth in range(3):
            plain += judge.judge(Draft(), model(plain)[None], 4 + depth, Noise(seed)).emitted
        draft = Draft(tuple(rng.randrange(W) for _ in range(2)))
        emitted = judge.judge(draft, rows_of(model, draft), 4, Noise(seed)).emitted
        assert emitted == plain[: len(emitted)]


def test_ratio_arithmetic_at_the_edges():
    assert not accepts(1e-9, 0.0, 0.5) and not accepts(1e-9, 0.0, 0.0)
    assert accepts(1 - 1e-9, 0.3, 0.3) and accepts(1 - 1e-9, 1e-30, 1e-31)
    law = torch.tensor([0.25, 0.75])
    assert torch.equal(residual(law, law + torch.tensor([1e-7, -1e-7])), law)
    weights = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0])
    assert [inverse(weights, u) for u in (2.0**-33, 0.299, 0.301, 1 - 2.0**-33)] == [1, 1, 3, 3]
    same = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    assert Ratio(lambda *_: 1 - 2.0**-33).judge(Draft((1,), probs=same[:1]), same, 0, NOISE).path == (1,)


def test_a_chain_that_is_written_out_is_a_chain():
    rows = torch.full((3, W), 1 / W)
    written = Draft((1, 2), Tree.drafted((0, 1)), rows[:2])
    assert Ratio().judge(written, rows, 0, NOISE) == Ratio().judge(Draft((1, 2), probs=rows[:2]), rows, 0, NOISE)
