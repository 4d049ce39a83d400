"""Attention against the fp64 row-by-row reference and against a dense softmax written out."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from stretto.core.pages import Locations
from stretto.core.seqs import Accepted, Seqs
from stretto.core.state import PageRef, StateSpec, TensorCache, paged
from stretto.kernels.attention import attention, merge

G, H, K = 2, 6, 8


def _qkv(rows: int, dtype: torch.dtype = torch.float64, value_size: int = K) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(rows, heads, n, dtype=dtype) for heads, n in ((H, K), (G, K), (G, value_size)))


def _cache(num_seqs: int, value_size: int = K, device: str = "cpu") -> TensorCache:
    sizes = {"k": K, "v": value_size}
    specs = [StateSpec(name=n, shape=(G, sizes[n]), kind="paged") for n in sizes]
    return TensorCache(specs, num_seqs, torch.float64, device)


CASES = {
    "packed": Seqs.of([5, 1, 0, 9]),
    "prefill after context": Seqs.of([5, 3], [7, 0]),
    "decode": Seqs.of([1, 1, 1], [4, 9, 1], num_step=3),
    "verify chains": Seqs.of([4, 1, 3], [4, 9, 1], num_draft=[3, 0, 2], num_step=3),
    "verify trees": Seqs.of([5, 4], [6, 0], num_draft=[4, 3], parents=[[-1, 0, 0, 1, 2], [-1, 0, 1, 0]], num_step=2),
    "mixed": Seqs.of([1, 4, 6], [3, 5, 2], num_draft=[0, 3, 0], parents=[None, [-1, 0, 0, 2], None], num_step=2),
}


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sinks": {"sinks": torch.tensor([0.3, -4.0, 2.0, 0.0, 5.0, -0.7], dtype=torch.float64)},
    "soft-capped": {"softcap": 0.8},
}
OPTIONS["both"] = {**OPTIONS["sinks"], **OPTIONS["soft-capped"]}


@pytest.mark.parametrize("value_size", [K, 5])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", CASES)
def test_torch_equals_reference(name: str, options: str, window: int | None, value_size: int) -> None:
    seqs = CASES[name]
    has_context = any(seqs.contexts) or seqs.num_step
    caches = [_cache(seqs.num_seqs, value_size) for _ in range(2)]
    rows = Seqs.of(seqs.contexts)
    past = [torch.randn(rows.num_rows, G, n, dtype=torch.float64) for n in (K, value_size)]
    for cache in caches:
        for ref, values in zip("kv", past, strict=True):
            paged(cache, ref).append(values, rows)
    q, k, v = _qkv(seqs.num_rows, value_size=value_size)
    results = [
        attention(
            q,
            k,
            v,
            seqs=seqs,
            window=window,
            impl=impl,  # type: ignore[arg-type]
            kv=(cache["k"], cache["v"]) if has_context else None,
            **OPTIONS[options],
        )
        for impl, cache in zip(("torch", "reference"), caches, strict=True)
    ]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", CASES)
def test_auto_runs_off_the_cpu(name: str, window: int | None) -> None:
    """Meta tensors stand for any device: no operation may mix them with tensors of the CPU."""
    case = CASES[name]
    seqs = Seqs(case.lens, case.contexts, case.num_draft, case.trees, case.num_step, torch.device("meta"))
    q, k, v = (x.to("meta") for x in _qkv(seqs.num_rows))
    kv = None
    if any(case.contexts) or case.num_step:
        cache = _cache(case.num_seqs, device="meta")
        rows = Seqs.of(case.contexts, device="meta")
        for name_of in "kv":
            paged(cache, name_of).append(torch.empty(rows.num_rows, G, K, dtype=torch.float64, device="meta"), rows)
        kv = (paged(cache, "k"), paged(cache, "v"))
    o, lse = attention(q, k, v, seqs=seqs, window=window, kv=kv)
    assert o.device.type == lse.device.type == "meta" and o.shape == (seqs.num_rows, H, K)


def test_values_of_another_size_have_gradients() -> None:
    q, k, v = (x.requires_grad_() for x in _qkv(4, value_size=3))

    def run(*args: torch.Tensor) -> torch.Tensor:
        return attention(*args, seqs=Seqs.of([4]))[0]

    assert torch.autograd.gradcheck(run, (q, k, v))


def test_causal_equals_a_dense_softmax() -> None:
    q, k, v = _qkv(7)
    got, _ = attention(q, k, v, seqs=Seqs.of([7]))
    scores = torch.einsum("ihk,jhk->hij", q, k.repeat_interleave(3, 1)) * K**-0.5
    weights = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf).softmax(-1)
    torch.testing.assert_close(got, torch.einsum("hij,jhv->ihv", weights, v.repeat_interleave(3, 1)))


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("options", OPTIONS)
def test_options_equal_a_loop_over_numbers(options: str, impl: Any) -> None:
    """A sink is a key without a value; soft-capping bends scores before the softmax."""
    (q, k, v), how = _qkv(6), OPTIONS[options]
    o, lse = attention(q, k, v, seqs=Seqs.of([6]), window=4, impl=impl, **how)
    for i in range(6):
        for h in range(H):
            scores = {j: float(q[i, h] @ k[j, h // 3]) * K**-0.5 for j in range(max(0, i - 3), i + 1)}
            if cap := how.get("softcap"):
                scores = {j: cap * math.tanh(s / cap) for j, s in scores.items()}
            total = sum(map(math.exp, scores.values()))
            if (sinks := how.get("sinks")) is not None:
                total += math.exp(sinks[h])
            want = [sum(math.exp(s) / total * float(v[j, h // 3, d]) for j, s in scores.items()) for d in range(K)]
            assert o[i, h].tolist() == pytest.approx(want, rel=0, abs=1e-12)
            assert float(lse[i, h]) == pytest.approx(math.log(total), rel=0, abs=1e-12)


def test_pages_in_any_order_equal_plain_tensors() -> None:
    seqs, page = Seqs.of([1, 3], [18, 20], num_draft=[0, 2], num_step=2), 16
    table = torch.tensor([[5, 2], [1, 7]])
    pools = [torch.randn(9, page, G, K, dtype=torch.float64) for _ in range(2)]
    slots = torch.cat(
        [table[b, p // page] * page + p % page for b, p in ((0, torch.tensor([18])), (1, torch.arange(20, 23)))]
    )
    q, k, v = _qkv(4)
    cache = _cache(2)
    for name, pool in zip("kv", pools, strict=True):
        held = [pool[table[b]].flatten(0, 1)[: seqs.contexts[b]] for b in range(2)]
        paged(cache, name).append(torch.cat(held), Seqs.of(seqs.contexts))
    want = attention(q, k, v, seqs=seqs, kv=(cache["k"], cache["v"]), impl="reference")
    got = attention(q, k, v, seqs=seqs, kv=tuple(PageRef(pool, Locations(table, slots)) for pool in pools))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("window", [None, 1, 4, 30])
@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("name", ["prefill after context", "decode", "verify chains", "verify trees", "mixed"])
def test_a_permuted_list_of_keys_gives_what_the_ordered_one_gives(name: str, impl: str, window: int | None) -> None:
    """The order of a list, and what it lacks of what no row sees, changes nothing: masks go by positions."""
    case = CASES[name]
    longest = max(c + n for c, n in zip(case.contexts, case.lens, strict=True))
    held = [torch.randn(len(case.contexts), longest, G, K, dtype=torch.float64) for _ in range(2)]
    rows = _qkv(case.num_rows)

    def run(order: list[torch.Tensor] | None) -> tuple[torch.Tensor, torch.Tensor]:
        seqs, page, blocks = replace(case, _memo={}), 4, -(-longest // 4)
        table = (torch.randperm(case.num_seqs * blocks) + 1).view(case.num_seqs, blocks)
        places = table.repeat_interleave(page, 1) * page + torch.arange(page).repeat(blocks)
        kept = [torch.arange(c) for c in case.contexts] if order is None else order
        slots = torch.cat(
            [places[b, len(k) : len(k) + n] for b, (k, n) in enumerate(zip(kept, case.lens, strict=True))]
        )
        where, refs = Locations(table, slots, key_positions=order), []
        for values in held:
            pages = torch.zeros(case.num_seqs * blocks + 1, page, G, K, dtype=torch.float64)
            for b, own in enumerate(kept):
                pages.flatten(0, 1)[places[b, : len(own)]] = values[b, own]
            refs.append(PageRef(pages, where))
        return attention(*rows, seqs=seqs, window=window, kv=(refs[0], refs[1]), impl=impl)  # type: ignore[arg-type]

    want = run(None)
    for _ in range(3):
        order = [torch.randperm(c) for c in case.contexts]
        if window is not None:  # some keys that no row sees are not there
            order = [x[(x > c - window) | (torch.rand(c) < 0.5)] for x, c in zip(order, case.contexts, strict=True)]
        for got, expected in zip(run(order), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_a_thinned_list_of_keys_is_a_softmax_over_what_is_left() -> None:
    kept, (q, k, v) = torch.tensor([6, 0, 3]), _qkv(1)
    held = [torch.randn(8, G, K, dtype=torch.float64) for _ in range(2)]
    table, seqs = torch.tensor([[1]]), Seqs.of([1], [8], num_step=1)
    refs = []
    for values in held:
        pages = torch.zeros(2, 16, G, K, dtype=torch.float64)
        pages[1, :3] = values[kept]
        refs.append(PageRef(pages, Locations(table, torch.tensor([19]), key_positions=[kept])))
    got, _ = attention(q, k, v, seqs=seqs, kv=(refs[0], refs[1]))
    for h in range(H):
        keys = [*(held[0][j, h // 3] for j in kept), k[0, h // 3]]
        scores = [float(q[0, h] @ key) * K**-0.5 for key in keys]
        weights = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]
        rows = [*(held[1][j, h // 3] for j in kept), v[0, h // 3]]
        want = sum((w * row for w, row in zip(weights, rows, strict=True)), torch.zeros(K, dtype=torch.float64))
        torch.testing.assert_close(got[0, h], want, rtol=0, atol=1e-12)


def test_merge_is_the_softmax_of_the_union() -> None:
    q, k, v = _qkv(6)
    cache, plain = _cache(1), _cache(1)
    for part in (slice(0, 4), slice(4, 6)):
        seqs = Seqs.of([2], [4]) if part.start else Seqs.of([4])
        got = attention(q[part], k[part], v[part], seqs=seqs, kv=(cache["k"], cache["v"]))
    want = attention(q, k, v, seqs=Seqs.of([6]), kv=(plain["k"], plain["v"]), impl="reference")
    torch.testing.assert_close(got[0], want[0][4:])
    empty = torch.full((6, H), -torch.inf, dtype=torch.float64)
    o, lse = merge(torch.zeros_like(want[0]), empty, *want)
    torch.testing.assert_close((o, lse), want)
    o, lse = merge(torch.zeros_like(want[0]), empty, torch.zeros_like(want[0]), empty)
    assert o.eq(0).all() and lse.eq(-torch.inf).all()


def test_commit_keeps_the_accepted_path() -> None:
    cache, seqs = _cache(1), Seqs.of([4], num_draft=[3], parents=[[-1, 0, 0, 2]], num_step=1)
    rows = torch.arange(4.0, dtype=torch.float64).view(4, 1, 1).expand(4, G, K)
    paged(cache, "k").append(rows, seqs)
    cache.commit(Accepted.of(seqs, [[2, 3]]))
    assert cache["k"].read(0, seqs)[:, 0, 0].tolist() == [0, 2, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_error_is_at_most_twice_that_of_plain_torch(dtype: torch.dtype) -> None:
    q, k, v = _qkv(64, dtype)
    got, _ = attention(q, k, v, seqs=Seqs.of([64]))
    want, _ = attention(q.double(), k.double(), v.double(), seqs=Seqs.of([64]), impl="reference")
    heads = [t.transpose(0, 1)[None] for t in (q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))]
    scores = (heads[0] @ heads[1].mT * K**-0.5).masked_fill(torch.ones(64, 64).triu(1).bool(), -torch.inf)
    plain = (scores.softmax(-1) @ heads[2])[0].transpose(0, 1)
    ulp = torch.finfo(dtype).eps * want.abs().max()
    assert (got - want).abs().max() <= 2 * (plain - want).abs().max() + ulp


def test_gradients() -> None:
    q, k, v = (t.requires_grad_() for t in _qkv(5))
    loss = lambda impl: attention(q, k, v, seqs=Seqs.of([3, 2]), impl=impl)[0].pow(2).sum()  # noqa: E731
    for got, want in zip(*(torch.autograd.grad(loss(i), (q, k, v)) for i in ("torch", "reference")), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])  # fp64 is for oracles, whose laws have tolerances
@pytest.mark.parametrize("context", [0, 30, 63, 64, 200])
def test_a_step_row_keeps_its_bits_alone_in_a_batch_and_in_a_draft_chain(context: int, dtype: torch.dtype) -> None:
    specs = [StateSpec(name=n, shape=(G, K), kind="paged") for n in "kv"]
    past = [torch.randn(context, G, K, dtype=dtype) for _ in range(2)]
    q, k, v = _qkv(9, dtype)

    def held(*contexts: int) -> TensorCache:
        cache = TensorCache(specs, len(contexts), dtype)
        for name, rows in zip("kv", past, strict=True):
            paged(cache, name).append(torch.cat([rows[:c] for c in contexts]), Seqs.of(contexts))
        return cache

    def run(rows: slice, seqs: Seqs, cache: TensorCache) -> torch.Tensor:
        return attention(q[rows], k[rows], v[rows], seqs=seqs, kv=(cache["k"], cache["v"]))[0]

    cache = held(context)
    alone = [run(slice(i, i + 1), Seqs.of([1], [context + i], num_step=1), cache)[0] for i in range(9)]
    chain = run(slice(0, 9), Seqs.of([9], [context], num_draft=[8], num_step=1), held(context))
    assert all(torch.equal(a, b) for a, b in zip(alone, chain, strict=True))
    many = Seqs.of([1, 1, 4], [context, context // 2, context], num_draft=[0, 0, 3], num_step=3)
    pick = torch.tensor([0, 5, 0, 1, 2, 3])
    crowd = held(context, context // 2, context)
    got = attention(q[pick], k[pick], v[pick], seqs=many, kv=(crowd["k"], crowd["v"]))[0]
    assert torch.equal(got[0], alone[0]) and all(torch.equal(got[2 + i], alone[i]) for i in range(4))
