"""Attention of prompts in 16-bit integers: its error, its bits, and sums at the edge of what integers hold."""

import pytest
import torch
from attention_cases import LAYERS, Cache, Layer, attend, decode, equal
from native import LEVELS
from torch import Tensor

from stretto.core.page_format import Plain
from stretto.core.seqs import Seqs
from stretto.kernels.attention import attention

Rows = tuple[Tensor, Tensor, Tensor]


def mixed() -> Seqs:
    """Decoding and verification beside three prompts, one longer than any block of rows."""
    return Seqs.of([1, 5, 200, 0, 33], [600, 300, 240, 40, 0], num_draft=[0, 4, 0, 0, 0], num_step=2)


def reference(cache: Cache, seqs: Seqs, rows: Rows) -> tuple[Tensor, Tensor]:
    """(o, lse) in fp64, from keys and values as they are stored."""
    layer, (q, k, v) = cache.layer, (x.double() for x in rows)
    k, v = layer.stored(k), layer.stored(v)
    how = {"seqs": seqs, "scale": layer.K**-0.5, **layer.options}
    return attention(q, k, v, kv=cache.refs(seqs, torch.float64), impl="reference", **how)


@pytest.mark.parametrize("name", LAYERS)
def test_prompts_are_near_fp64_and_what_decodes_keeps_its_bits(name: str) -> None:
    layer, seqs = LAYERS[name], mixed()
    empty, rows = Cache(layer, seqs.num_seqs).filled(seqs), layer.rows(seqs.num_rows)
    exact, first = attend(empty.copy(), seqs, rows), seqs.num_step_rows
    cache = empty.copy()
    got, want = attend(cache, seqs, rows, coarse=True), reference(cache, seqs, rows)
    assert equal([x[:first] for x in got], [x[:first] for x in exact])
    o, lse = (x[first:] - y[first:] for x, y in zip(got, want, strict=True))
    assert 2e-5 < o.norm() / want[0][first:].norm() < 1e-3, "what --prefill int8 costs here"
    assert o.abs().max() < 5e-3 and lse.abs().max() < 2e-3


@pytest.mark.parametrize("name", LAYERS)
def test_a_prompt_has_the_same_bits_however_it_is_cut(name: str) -> None:
    layer, context, n = LAYERS[name], 240, 210
    empty, rows = Cache(layer, 3).filled(Seqs.of([0] * 3, [context, 500, 77])), layer.rows(n)
    want = attend(empty.copy(), Seqs.of([n], [context]), rows, coarse=True)
    for lens in ([16, n - 16], [1, 7, 25, 64, n - 97], [n - 1, 1]):
        cache, at, parts = empty.copy(), 0, []
        for m in lens:
            some: Rows = tuple(x[at : at + m] for x in rows)  # type: ignore[assignment]
            parts.append(attend(cache, Seqs.of([m], [context + at]), some, coarse=True))
            at += m
        assert equal([torch.cat(x) for x in zip(*parts, strict=True)], want), lens
    company: Rows = tuple(torch.cat([x, y]) for x, y in zip(rows, layer.rows(23), strict=True))  # type: ignore[assignment]
    together = attend(empty.copy(), Seqs.of([n, 3, 20], [context, 500, 77]), company, coarse=True)
    assert equal([x[:n] for x in together], want)


@pytest.mark.parametrize("name", LAYERS)
def test_levels_and_threads_give_the_same_bits(name: str) -> None:
    layer, seqs = LAYERS[name], mixed()
    empty, rows = Cache(layer, seqs.num_seqs).filled(seqs), layer.rows(seqs.num_rows)
    want = attend(empty.copy(), seqs, rows, threads=1, coarse=True)
    for level, threads in [(LEVELS[0], 3), *((level, 2) for level in LEVELS)]:
        got = attend(empty.copy(), seqs, rows, level=level, threads=threads, coarse=True)
        assert equal(got, want), (level, threads)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [1e-25, 1.0, 1e4])
def test_sums_as_large_as_they_can_be_do_not_overflow(level: str, size: float) -> None:
    """All elements alike: every integer is at its limit, and so is every sum."""
    layer, n = Layer(1, 1, 256, 256, Plain(torch.float32)), 256
    seqs, cache = Seqs.of([n], [0]), Cache(layer, 1)
    for sign in (1.0, -1.0):
        q, k = torch.full((n, 1, 256), 0.05), torch.full((n, 1, 256), sign)
        v = torch.full((n, 1, 256), size)
        o, lse = attend(cache, seqs, (q, k, v), level=level, coarse=True)
        torch.testing.assert_close(o, v, rtol=1e-3, atol=0)
        seen = torch.arange(1, n + 1).log() + sign * 0.05 * 16
        torch.testing.assert_close(lse[:, 0], seen, rtol=1e-4, atol=1e-4)


def test_a_large_weight_of_a_small_value_takes_no_precision_from_the_others() -> None:
    """As first tokens have it: nearly all of the weight, and values near zero."""
    layer, n = Layer(2, 1, 64, 64), 250
    (q, k, v), first = layer.rows(n), torch.randn(64)
    q, k[0], v[0] = first + 0.5 * q, 1.5 * first, 1e-3 * v[0]
    rows, seqs, cache = (q, k, v), Seqs.of([n], [0]), Cache(layer, 1)
    o, _ = attend(cache, seqs, rows, coarse=True)
    want, lse = reference(cache, seqs, rows)
    assert ((q @ k[0, 0].bfloat16().float()) / 8 - lse).exp().min() > 0.9
    assert ((o - want).norm(dim=-1) / want.norm(dim=-1)).max() < 2e-3


@pytest.mark.parametrize("state", ["q", "k", "v"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_surfaces_where_it_is_seen(level: str, state: str, bad: float) -> None:
    layer, seqs = LAYERS["grouped"], Seqs.of([1, 40], [300, 20], num_step=1)
    cache, rows = Cache(layer, 2).filled(seqs), layer.rows(41)
    rows["qkv".index(state)][11, 1, 7] = bad  # row 10 of the prompt, head 1
    o, _ = attend(cache, seqs, rows, level=level, coarse=True)
    sick = torch.zeros(41, 9, dtype=torch.bool)
    sick[11 if state == "q" else slice(11, None), 1 if state == "q" else slice(3, 6)] = True
    assert torch.equal(~o.isfinite().all(-1), sick)


def test_a_short_prompt_after_a_long_context() -> None:
    """Its splits are shared out over threads, as those of decoding are."""
    layer, context, n = LAYERS["grouped"], 905, 6
    empty, rows = Cache(layer, 1).filled(Seqs.of([0], [context])), layer.rows(n)
    exact = decode(empty.copy(), context, rows)
    got = attend(empty.copy(), Seqs.of([n], [context]), rows, coarse=True)
    assert 1e-5 < (got[0] - exact[0]).norm() / exact[0].norm() < 1e-3
