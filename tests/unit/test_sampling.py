"""Noise against published vectors; laws against plain Python and transformers; draws against the law they claim."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import team
from scipy import stats
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from stretto.core.errors import RunError, UserError
from stretto.core.sampling import Noise, Sampling
from stretto.kernels.sampling import (
    Purpose,
    RowSampling,
    draw,
    gumbel,
    logprobs,
    picks,
    probs,
    process,
    reference,
    refusals,
    try_picks,
    try_probs,
)
from stretto.kernels.sampling import philox as vectorised
from stretto.kernels.sampling import uniform as uniforms
from stretto.kernels.sampling.noise import gumbel_of_rows

NOISE = Noise(seed=2**63 + 12345, child=3)


def mask_without(banned, width: int) -> bytes:
    """A grammar's mask that allows all tokens but these."""
    return sum(1 << t for t in range(width) if t not in banned).to_bytes(-(-width // 8), "little")


def row(position: int = 0, *, seed: int = 7, prompt=(), output=(), path=(), banned=(), allowed=None, **fields):
    return RowSampling(
        Sampling(**fields).resolve(), Noise(seed), position, prompt, output, path, banned, allowed
    )  # fmt: skip


# -- noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_words(counter, key, want):
    assert " ".join(f"{w:08x}" for w in reference.philox(counter, key)) == want


def test_splitmix64_gives_the_published_outputs():
    assert [reference.splitmix64(1234567, n) for n in (1, 2, 3, 4, 5)] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 5), st.integers(0, 2**32 - 1), st.sampled_from(Purpose), st.data())
def test_vectorised_noise_equals_python_integers(seed, child, position, purpose, data):
    noise, first = Noise(seed, child), data.draw(st.integers(0, 60000))
    span = range(first, first + data.draw(st.integers(0, 40)))
    words = [reference.word(noise, position, purpose, t) for t in span]
    assert vectorised.words(noise, position, purpose, span).tolist() == words
    ids = torch.tensor(list(span)[::-3], dtype=torch.int64)
    assert vectorised.words(noise, position, purpose, ids).tolist() == words[::-3]
    assert uniforms(noise, position, purpose, span).tolist() == [(w + 0.5) / 2**32 for w in words]
    want = torch.tensor([-math.log(-math.log((w + 0.5) / 2**32)) for w in words], dtype=torch.float64).float()
    assert torch.equal(gumbel(noise, position, purpose, span), want)


def test_noise_of_survivors_is_noise_of_the_vocabulary():
    whole = gumbel(NOISE, 9, Purpose.TOKEN, range(49152))
    for ids in (torch.arange(0, 49152, 7), torch.tensor([3, 49151]), torch.tensor([5])):
        assert torch.equal(gumbel(NOISE, 9, Purpose.TOKEN, ids), whole[ids])
    many = gumbel_of_rows([NOISE, Noise(1)], [9, 4], Purpose.TOKEN, [torch.tensor([3, 8]), torch.arange(9)])
    assert torch.equal(many[0], whole[torch.tensor([3, 8])])
    assert torch.equal(many[1], gumbel(Noise(1), 4, Purpose.TOKEN, range(9)))


def test_extreme_words_stay_inside_the_open_interval():
    extreme = np.array([0, 2**32 - 1], dtype=np.uint64)
    low, high = vectorised.uniform(extreme).tolist()
    assert 0 < low < high < 1
    assert vectorised.gumbel(extreme).tolist() == pytest.approx([-3.1296, 22.8739], abs=1e-3)


def test_uniform_noise_is_uniform_and_streams_are_independent():
    streams = [
        uniforms(noise, position, purpose, range(20_000)).numpy()
        for noise, position, purpose in [
            (Noise(5), 3, Purpose.TOKEN), (Noise(5), 4, Purpose.TOKEN), (Noise(5), 3, Purpose.ACCEPT),
            (Noise(5, 1), 3, Purpose.TOKEN), (Noise(6), 3, Purpose.TOKEN),
        ]
    ]  # fmt: skip
    assert all(stats.kstest(u, "uniform").pvalue > 1e-4 for u in streams)
    across = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(across).max() < 5 / math.sqrt(20_000)
    assert stats.kstest([draw(Noise(s), 0, Purpose.ACCEPT) for s in range(5000)], "uniform").pvalue > 1e-4


# -- laws ----------------------------------------------------------------------------------------------------------

_settings = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.5]),
        "top_k": st.sampled_from([-1, 0, 1, 2, 5, 50]),
        "top_p": st.sampled_from([1e-9, 0.3, 0.7, 0.95, 1.0]),
        "min_p": st.sampled_from([0.0, 0.051, 0.33, 1.0]),
        "presence_penalty": st.sampled_from([0.0, 0.5, -1.5]),
        "frequency_penalty": st.sampled_from([0.0, 0.25, -0.5]),
        "repetition_penalty": st.sampled_from([1.0, 1.5, 0.5]),
        "logit_bias": st.dictionaries(st.integers(0, 11), st.sampled_from([-100.0, -1.0, 2.5]), max_size=3),
    }
)
_ids = st.lists(st.integers(0, 11), max_size=6)
_banned = st.sets(st.integers(0, 11), max_size=11)
# Quarters make ties common and are exact in fp64, so both sides see the same ties.
_quarters = st.lists(st.integers(-12, 12), min_size=12, max_size=12)


@settings(max_examples=300, deadline=None)
@given(_quarters, _settings, _ids, _ids, _ids, _banned)
def test_laws_equal_plain_python(quarters, fields, prompt, output, path, banned):
    logits = torch.tensor(quarters, dtype=torch.float64) / 4
    r = row(prompt=prompt, output=output, path=path, banned=tuple(banned), **fields)
    want = reference.law(logits.tolist(), r.sampling, prompt, [*output, *path], banned)
    got = process(logits, r)
    ids = list(range(12)) if got.ids is None else got.ids.tolist()
    finite = [(i, v) for i, v in zip(ids, got.logits.tolist(), strict=True) if v > -math.inf]
    assert [i for i, _ in finite] == list(want)
    assert [v for _, v in finite] == pytest.approx(list(want.values()), abs=1e-12)
    total = math.fsum(map(math.exp, want.values()))
    law = [math.exp(want[t]) / total if t in want else 0.0 for t in range(12)]
    assert probs(logits[None], [r])[0].tolist() == pytest.approx(law, abs=1e-12)
    allowed = mask_without(banned, 12)
    masked = row(prompt=prompt, output=output, path=path, allowed=allowed, **fields)
    assert torch.equal(probs(logits[None], [masked]), probs(logits[None], [r]))


@pytest.mark.parametrize(
    ("fields", "warper"),
    [
        ({"top_k": 50}, TopKLogitsWarper(50)),
        ({"top_p": 0.9}, TopPLogitsWarper(0.9)),
        ({"top_p": 0.9999}, TopPLogitsWarper(0.9999)),
        ({"min_p": 0.05}, MinPLogitsWarper(0.05)),
        ({"repetition_penalty": 1.3}, RepetitionPenaltyLogitsProcessor(1.3)),
    ],
    ids=lambda v: "-".join(map(str, v)) if isinstance(v, dict) else "",
)
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_laws_over_a_whole_vocabulary_equal_transformers(fields, warper, spread):
    logits, seen = torch.randn(3, 30_000) * spread, [5, 5, 29_999, 17]
    rows = [row(prompt=seen[:2], output=seen[2:], temperature=1.0, **fields)] * 3
    want = warper(torch.tensor([seen] * 3), logits.clone()).softmax(1)
    assert torch.allclose(probs(logits, rows), want, atol=1e-7)


@pytest.mark.parametrize("temperature", [1e-30, 1e-310, 5e-324, 100.0])
def test_any_allowed_temperature_gives_a_law(temperature):
    law = probs(torch.tensor([[1.0, 3.0, 3.0, -80.0]]), [row(temperature=temperature)])[0]
    want = [0, 0.5, 0.5, 0] if temperature < 1 else torch.tensor([0.01, 0.03, 0.03, -0.8]).softmax(0).tolist()
    assert law.tolist() == pytest.approx(want, abs=1e-6)


# -- picks ---------------------------------------------------------------------------------------------------------


def test_greedy_takes_the_lowest_id_of_the_largest_logit():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [-5.0, -5.0, -5.0, -5.0], [1.0, 1.0, 0.0, 1.0]])
    rows = [row(temperature=0), row(temperature=0), row(temperature=0, banned=(0,))]
    assert picks(logits, rows) == [1, 0, 1]
    assert picks(logits.bfloat16(), rows) == [1, 0, 1]
    assert picks(logits[:0], []) == []


def test_a_pick_depends_on_its_own_row_only():
    logits = torch.randn(5, 999)
    rows = [
        row(0, temperature=0), row(11, temperature=0.9), row(12, temperature=1.0, top_k=20),
        row(12, temperature=1.3, top_p=0.8, seed=1), row(3, temperature=1.0, min_p=0.1, banned=(4, 5)),
    ]  # fmt: skip
    alone = [picks(logits[i : i + 1], [r])[0] for i, r in enumerate(rows)]
    assert picks(logits, rows) == alone
    assert picks(logits.flip(0), rows[::-1]) == alone[::-1]


def test_picks_are_gumbel_max_over_the_survivors():
    logits = torch.randn(40, 300, dtype=torch.float64) * 2
    rows = [row(i, temperature=0.8, top_k=k, top_p=p) for i, (k, p) in enumerate([(0, 1.0), (30, 0.9)] * 20)]
    for x, r, got in zip(logits, rows, picks(logits, rows), strict=True):
        law = reference.law(x.tolist(), r.sampling)
        score = {t: v + reference.gumbel(r.noise, r.position, Purpose.TOKEN, t) for t, v in law.items()}
        assert got == max(score, key=score.__getitem__)


@pytest.mark.parametrize("fields", [{}, {"top_p": 0.8}, {"top_k": 4, "min_p": 0.02}], ids=str)
def test_picks_follow_the_law(fields):
    logits = torch.randn(1, 8)
    rows = [row(position, temperature=1.2, **fields) for position in range(6000)]
    counts = torch.bincount(torch.tensor(picks(logits.expand(6000, 8), rows)), minlength=8).double()
    law = probs(logits, rows[:1])[0].double()
    alive = law > 0
    assert counts[~alive].sum() == 0
    assert stats.chisquare(counts[alive], 6000 * law[alive] / law.sum()).pvalue > 1e-4
    biased = (logits / 1.5)[0].double().softmax(0)[alive]  # power: temperature 1.5 in place of 1.2 is noticed
    assert stats.chisquare(counts[alive], 6000 * biased / biased.sum()).pvalue < 1e-4


@pytest.mark.parametrize(
    "fields", [{"temperature": 0}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 2}], ids=str
)
def test_rows_without_a_choice_are_refused(fields):
    for call in (picks, probs):
        with pytest.raises(UserError, match="no token is allowed"):
            call(torch.full((1, 4), -math.inf), [row(**fields)])
        with pytest.raises(UserError, match="no token is allowed"):
            call(torch.zeros(1, 4), [row(banned=(0, 1, 2, 3), **fields)])
        for bad, name in ((math.nan, "NaN"), (math.inf, "infinite")):
            with pytest.raises(RunError, match=name):
                call(torch.tensor([[0.0, bad, 1.0]]), [row(**fields)])
        with pytest.raises(UserError, match="token id 4 does not exist"):
            call(torch.zeros(1, 4), [row(logit_bias={4: 1.0}, **fields)])
    one_left = picks(torch.zeros(1, 4), [row(banned=(0, 1, 3), **fields)])
    assert one_left == [2]


@pytest.mark.parametrize("natively", [False, True])
@pytest.mark.parametrize(
    "fields",
    [{"temperature": 0}, {"temperature": 0.9}, {"temperature": 1.1, "top_k": 3}, {"temperature": 1.0, "top_p": 0.8}],
    ids=str,
)
def test_a_row_without_a_choice_costs_no_other_row_its_token(fields, natively):
    """Whole rows and single entries that are NaN or infinite, rows that allow nothing, and sound ones in between."""
    threads = team() if natively else None
    logits, W = torch.randn(12, 40), 40
    rows = [row(r, seed=r, **fields) for r in range(12)]
    logits[1], logits[3, 7], logits[5, 0], logits[7, 39], logits[8] = math.nan, math.nan, math.inf, math.nan, -math.inf
    rows[7] = row(7, seed=7, banned=(39,), **fields)  # NaN is refused wherever it stands
    rows[9] = row(9, banned=tuple(range(W)), **fields)
    rows[10] = row(10, logit_bias={4: -3.0}, **fields)
    bad = {1: "NaN", 3: "NaN", 5: "infinite", 7: "NaN", 8: "no token is allowed", 9: "no token is allowed"}
    good = [r for r in range(12) if r not in bad]
    chosen, refused = try_picks(logits, rows, threads=threads)
    assert sorted(refused) == sorted(bad) and all(bad[r] in str(why) for r, why in refused.items())
    assert [chosen[r] for r in good] == [picks(logits[r : r + 1], [rows[r]])[0] for r in good]
    laws, refused = try_probs(logits, rows)
    assert sorted(refused) == sorted(set(bad) - {7})  # a banned entry is no part of a law
    assert torch.equal(laws[good], torch.cat([probs(logits[r : r + 1], [rows[r]]) for r in good]))
    assert torch.equal(laws.sum(1).round(decimals=5), torch.ones(12))
    with pytest.raises(RunError, match="NaN"):
        picks(logits, rows, threads=threads)
    assert try_picks(logits[:0], []) == ([], {}) and refusals([0.0, -5.0]) == {}


# -- backends ------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(_quarters, _settings, _ids, _ids, _ids, _banned)
def test_every_backend_is_the_reference(quarters, fields, prompt, output, path, banned):
    logits = (torch.tensor(quarters, dtype=torch.float64) / 4).view(1, 12)
    for masks in ({"banned": tuple(banned)}, {"allowed": mask_without(banned, 12)}):
        rows = [row(3, prompt=prompt, output=output, path=path, **masks, **fields)]
        tokens, refused = try_picks(logits, rows, impl="reference")
        assert not refused and tokens == picks(logits, rows)
        assert torch.allclose(probs(logits, rows, impl="reference"), probs(logits, rows), atol=1e-12)


def test_the_reference_refuses_what_the_others_refuse():
    logits = torch.randn(5, 6)
    logits[1, 2] = math.nan
    logits[2] = -math.inf
    rows = [row(r, temperature=1.0) for r in range(3)]
    rows += [row(temperature=1.0, banned=tuple(range(6))), row(temperature=1.0, logit_bias={6: 1.0})]
    for call in (try_picks, try_probs):
        want, got = call(logits, rows)[1], call(logits, rows, impl="reference")[1]
        assert {r: str(why) for r, why in got.items()} == {r: str(why) for r, why in want.items()}
        assert sorted(got) == [1, 2, 3, 4]


def test_logprobs_of_the_reference():
    logits, chosen = torch.randn(3, 50, dtype=torch.float64), torch.tensor([0, 17, 49])
    logits[1, :30] = -math.inf
    logits[2, ::2] = 1.0
    for k in (0, 5, 40):
        want, got = (logprobs(logits, chosen, k, impl=impl) for impl in ("reference", "auto"))
        assert torch.equal(got.ids, want.ids)
        for a, b in ((got.chosen, want.chosen), (got.values, want.values)):
            assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_native_threads_draw_where_they_can_and_once(monkeypatch):
    logits, rows, threads = torch.randn(3, 20), [row(r, temperature=1.0) for r in range(3)], team()
    calls = []
    run_once = type(threads).run_once
    monkeypatch.setattr(
        type(threads), "run_once", lambda self, name, args: (calls.append(name), run_once(self, name, args))
    )
    assert picks(logits, rows, threads=threads) == picks(logits, rows) and calls == ["choose"]
    assert picks(logits.double(), rows, threads=threads) == picks(logits.double(), rows) and calls == ["choose"]
    for x, where, why in ((logits, None, "no native threads"), (logits.double(), threads, "fp32 logits on the CPU")):
        with pytest.raises(UserError, match=why):
            picks(x, rows, threads=where, impl="native")


# -- log-probabilities ---------------------------------------------------------------------------------------------


def test_logprobs_are_those_of_the_raw_logits():
    logits, chosen = torch.randn(4, 5000), torch.tensor([0, 17, 4999, 5])
    got = logprobs(logits, chosen, 20)
    want = logits.double().log_softmax(1)
    assert torch.allclose(got.chosen.double(), want.gather(1, chosen[:, None])[:, 0], atol=1e-5)
    values, ids = want.topk(20, dim=1)
    assert torch.equal(got.ids, ids)
    assert torch.allclose(got.values.double(), values, atol=1e-5)
    assert logprobs(logits, chosen, 0).ids.shape == (4, 0)
    ties = logprobs(torch.tensor([[1.0, 2.0, 1.0, 1.0, -math.inf]]), torch.tensor([1]), 3)
    assert ties.ids.tolist() == [[1, 0, 2]]
    assert logprobs(torch.tensor([[0.0, -math.inf]]), torch.tensor([0]), 9).values.tolist() == [[0.0, -math.inf]]
