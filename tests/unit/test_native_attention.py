"""Native attention: fp64 references, and bits that nothing but a query and the keys that it sees decide."""

import random
from collections.abc import Callable

import pytest
import torch
from attention_cases import CONTEXT, LAYERS, PAGE, SOFT_CAPPED, Cache, Layer, attend, decode, equal
from native import LEVELS, team

from stretto.cache.placement import Placement
from stretto.cache.pools import Pools
from stretto.core.errors import UserError
from stretto.core.page_format import Plain
from stretto.core.pages import Locations
from stretto.core.seqs import Seqs
from stretto.core.state import Paged, PageRef, StateSpec, TensorCache, paged
from stretto.kernels.attention import attention
from stretto.kernels.native.buffers import ALL_ROWS
from stretto.kernels.native.guard import NotRecordable
from stretto.kernels.native.tape import Tape

LAYERS = LAYERS | SOFT_CAPPED
TREE = (-1, 0, 0, 1, 2, 2, 4, 1, 6)  # the pending row and eight nodes

CASES: dict[str, Callable[[], Seqs]] = {  # made for every use: what a Seqs memoises belongs to one cache
    "decode": lambda: Seqs.of([1, 1, 1, 1], [0, 17, 255, 700], num_step=4),
    "verify chains": lambda: Seqs.of([4, 1, 9], [31, 256, 509], num_draft=[3, 0, 8], num_step=3),
    "verify trees": lambda: Seqs.of([9, 9], [250, 515], num_draft=[8, 8], parents=[TREE, TREE], num_step=2),
    "prefill": lambda: Seqs.of([70, 0, 33], [0, 40, 300]),
    "mixed": lambda: Seqs.of([1, 9, 5, 90, 20], [600, 13, 300, 240, 0], num_draft=[0, 8, 4, 0, 0],
                     parents=[None, TREE, None, None, None], num_step=3),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_fp64_reference(name: str, case: str) -> None:
    layer, seqs = LAYERS[name], CASES[case]()
    cache, (q, k, v) = Cache(layer, seqs.num_seqs).filled(seqs), layer.rows(seqs.num_rows)
    stored = [layer.stored(x) for x in (k, v)]
    how = {"seqs": seqs, "scale": layer.K**-0.5, **layer.options}
    want = attention(q.double(), *stored, kv=cache.refs(seqs, torch.float64), impl="reference", **how)
    # torch in fp32 wants keys and values of one size: zeros behind change nothing
    size = max(layer.K, layer.V)
    padded = [torch.nn.functional.pad(x, (0, size - x.shape[-1])) for x in (q, stored[0].float(), stored[1].float())]
    refs = cache.refs(seqs, torch.float32)
    for ref in refs:
        ref.pages = torch.nn.functional.pad(ref.pages, (0, size - ref.pages.shape[-1]))
    plain = attention(*padded, kv=refs, impl="torch", **how)
    got = attend(cache, seqs, (q, k, v))
    for x, y, z in zip(got, (plain[0][..., : layer.V], plain[1]), want, strict=True):
        assert (x - z).abs().max() <= 2 * (y - z).abs().max() + 1e-7
        assert (x - z).norm() <= 2 * (y - z).norm() + 1e-7 * z.norm()


@pytest.mark.parametrize("name", LAYERS)
def test_a_row_has_the_same_bits_in_every_form_of_call(name: str) -> None:
    layer, context, n = LAYERS[name], 240, 50
    empty, rows = Cache(layer, 3).filled(Seqs.of([0] * 3, [context, 500, 77])), layer.rows(n)
    one_by_one = empty.copy()
    want = decode(one_by_one, context, rows)
    chunks = [[50], [16, 34], [1, 7, 25, 17], [33, 17]]
    for lens in chunks:
        for is_step in (False, True):
            cache, at, parts = empty.copy(), 0, []
            for m in lens:
                seqs = Seqs.of([m], [context + at], num_draft=[m - 1 if is_step else 0], num_step=int(is_step))
                parts.append(attend(cache, seqs, tuple(x[at : at + m] for x in rows)))  # type: ignore[arg-type]
                at += m
            assert equal([torch.cat(x) for x in zip(*parts, strict=True)], want), (lens, is_step)
            for got, wanted in zip(cache.pages, one_by_one.pages, strict=True):
                assert equal([got.float()], [wanted.float()])
    company = Seqs.of([50, 3, 20], [context, 500, 77], num_draft=[49, 2, 0], num_step=2)
    others = layer.rows(23)
    together = tuple(torch.cat([x, y]) for x, y in zip(rows, others, strict=True))
    assert equal([x[:n] for x in attend(empty.copy(), company, together)], want)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["grouped", "odd sizes fp32", "window", "short window"])
def test_lists_of_keys_in_any_order(name: str, case: str) -> None:
    """Positions that are indices change no bit; other orders are near the fp64 reference of the ordered list."""
    layer, seqs = LAYERS[name], CASES[case]()
    cache, (q, k, v) = Cache(layer, seqs.num_seqs).filled(seqs), layer.rows(seqs.num_rows)
    ordered = cache.rearranged(seqs, [torch.arange(c) for c in seqs.contexts])
    shuffled = cache.rearranged(seqs, [torch.randperm(c) for c in seqs.contexts])
    seen = [torch.randperm(c) for c in seqs.contexts]
    if layer.window is not None:
        seen = [x[x > c - layer.window] for x, c in zip(seen, seqs.contexts, strict=True)]
    thinned = cache.rearranged(seqs, seen)
    stored = [layer.stored(x) for x in (k, v)]
    how = {"seqs": seqs, "scale": layer.K**-0.5, **layer.options}
    want = attention(q.double(), *stored, kv=cache.refs(seqs, torch.float64), impl="reference", **how)
    plain = attend(cache, seqs, (q, k, v))
    assert equal(attend(ordered, seqs, (q, k, v)), plain)
    for other in (shuffled, thinned):
        for x, y, z in zip(attend(other, seqs, (q, k, v)), plain, want, strict=True):
            assert (x - z).abs().max() <= 3 * (y - z).abs().max() + 1e-6
        assert equal(attend(other.copy(), seqs, (q, k, v), threads=1), attend(other.copy(), seqs, (q, k, v), threads=3))


@pytest.mark.parametrize("name", LAYERS)
def test_levels_and_threads_give_the_same_bits(name: str) -> None:
    layer = LAYERS[name]
    seqs = Seqs.of(
        [1, 9, 4, 40], [700, 13, 253, 240], num_draft=[0, 8, 3, 0], parents=[None, TREE, None, None], num_step=3
    )
    empty, rows = Cache(layer, seqs.num_seqs).filled(seqs), layer.rows(seqs.num_rows)
    want = attend(empty.copy(), seqs, rows, threads=1)
    for level in LEVELS:
        for threads in (1, 2, 3):
            cache = empty.copy()
            assert equal(attend(cache, seqs, rows, level=level, threads=threads), want), (level, threads)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("context", [0, 5, 30, 251, 510])
def test_a_path_of_a_tree_has_the_bits_of_plain_decoding(name: str, context: int) -> None:
    layer, draw = LAYERS[name], random.Random(context)
    n = draw.randrange(20, 64)
    parents = [-1, *(draw.randrange(max(0, r - 6), r) for r in range(1, n))]
    rows, seqs = layer.rows(n), Seqs.of([n], [context], num_draft=[n - 1], parents=[parents], num_step=1)
    empty = Cache(layer, 1).filled(seqs)
    o, lse = attend(empty.copy(), seqs, rows)
    for leaf in (n - 1, n // 2, 3):
        path = [leaf]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        assert equal((o[path], lse[path]), decode(empty.copy(), context, tuple(x[path] for x in rows)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("context", [0, 11, 254])
def test_what_moves_after_a_tree_is_what_decoding_would_have_stored(name: str, context: int) -> None:
    """Keys of accepted rows lie on other lanes and pages than where they end: nothing but their place changes."""
    layer, path = LAYERS[name], [0, 2, 5, 8, 17]
    specs = [
        StateSpec(name="k", shape=(layer.G, layer.K), kind="paged", lanes=True),
        StateSpec(name="v", shape=(layer.G, layer.V), kind="paged"),
    ]
    cache = Cache(layer, 1)
    pools = Pools(
        [specs],
        num_blocks=len(cache.pages[0]),
        num_slots=1,
        kv=layer.format,
        state_dtype=torch.float32,
        lanes=True,
    )
    (refs,) = pools.refs(Placement())
    cache.pages = [ref.pages for ref in refs.values() if isinstance(ref, PageRef)]
    cache.sides = [list(ref.sides) for ref in refs.values() if isinstance(ref, PageRef)]
    seqs = Seqs.of([18], [context], num_draft=[17], parents=[[-1, 0, 0, 1, 2, 2, 4, 1, 5, *[8] * 9]], num_step=1)
    plain, rows, following = cache.filled(seqs).copy(), layer.rows(18), layer.rows(1)
    attend(cache, seqs, rows)
    accepted, kept = cache.slots(0, context, context + 18)[path], cache.slots(0, context, context + len(path))
    pools.move(0, accepted.tolist(), kept.tolist())
    decode(plain, context, tuple(x[path] for x in rows))  # type: ignore[arg-type]
    held = slice(0, context + len(path))
    for got, want in zip(cache.pages, plain.pages, strict=True):
        got, want = (pages[cache.table[0]].flatten(0, 1)[held].float() for pages in (got, want))
        assert equal([got], [want])
    end = context + len(path)
    assert equal(decode(cache, end, following), decode(plain, end, following))


def test_more_rows_than_room_for_partial_results() -> None:
    layer, n = LAYERS["grouped fp32"], 24
    contexts = [600 + 7 * i for i in range(n)]  # three or four splits each, room for 64
    seqs, rows = Seqs.of([1] * n, contexts, num_step=n), layer.rows(n)
    empty = Cache(layer, n).filled(seqs)
    o, lse = attend(empty.copy(), seqs, rows)
    for b in (0, 11, n - 1):
        alone = empty.copy()
        alone.table = alone.table[b : b + 1]
        assert equal((o[b : b + 1], lse[b : b + 1]), decode(alone, contexts[b], tuple(x[b : b + 1] for x in rows)))  # type: ignore[arg-type]


def test_many_sequences_fall_into_few_chunks() -> None:
    layer, n = LAYERS["grouped"], 90  # 270 items
    contexts = [i % 50 for i in range(n)]
    seqs, rows = Seqs.of([1] * n, contexts, num_step=n), layer.rows(n)
    empty = Cache(layer, n).filled(seqs)
    o, lse = attend(empty.copy(), seqs, rows)
    for b in (0, 41, 42, 43, 85, n - 1):
        alone = empty.copy()
        alone.table = alone.table[b : b + 1]
        assert equal((o[b : b + 1], lse[b : b + 1]), decode(alone, contexts[b], tuple(x[b : b + 1] for x in rows)))  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["k", "v"])
@pytest.mark.parametrize("level", LEVELS)
def test_nan_in_a_visible_key_or_value_surfaces(level: str, state: str) -> None:
    layer, seqs = LAYERS["grouped"], Seqs.of([1, 40], [300, 20], num_step=1)
    cache, rows = Cache(layer, 2).filled(seqs), layer.rows(41)
    rows["qkv".index(state)][11, 1, 7] = torch.nan  # row 10 of the second sequence, head 1
    slot = int(cache.slots(0, 257, 258))
    cache.pages["kv".index(state)][slot // PAGE, slot % PAGE, 2, 5] = torch.nan
    o, lse = attend(cache, seqs, rows, level=level)
    sick = torch.zeros(41, 9, dtype=torch.bool)
    sick[11:, 3:6] = sick[0, 6:9] = True
    assert torch.equal(o.isnan().any(-1), sick)
    assert torch.equal(lse.isnan(), sick if state == "k" else torch.zeros_like(sick))


@pytest.mark.parametrize("level", LEVELS)
def test_a_nan_score_hides_nowhere(level: str) -> None:
    layer = Layer(1, 1, 16, 16, Plain(torch.float32))
    for context in (3, 40, 600):
        for place in {0, context // 2, context - 1, context}:
            seqs, rows = Seqs.of([1], [context], num_step=1), layer.rows(1)
            cache = Cache(layer, 1).filled(seqs)
            if place == context:
                rows[1][0, 0, 3] = torch.nan
            else:
                slot = int(cache.slots(0, place, place + 1))
                cache.pages[0][slot // PAGE, slot % PAGE] = torch.nan
            o, lse = attend(cache, seqs, rows, level=level)
            assert o.isnan().all() and lse.isnan().all()


def test_scores_far_from_zero_and_equal_scores() -> None:
    layer, seqs = Layer(2, 1, 16, 16, Plain(torch.float32)), Seqs.of([1], [600], num_step=1)
    for size in (0.0, 1e-30, 60.0, 1e4):
        q, k, v = layer.rows(1)
        q = q * size
        cache = Cache(layer, 1).filled(seqs)
        want = attention(
            q.double(), k.double(), v.double(), seqs=seqs, kv=cache.refs(seqs, torch.float64), impl="reference"
        )
        got = attend(cache, seqs, (q, k, v))
        torch.testing.assert_close(got[0], want[0].float(), rtol=1e-4, atol=3e-6 * max(1.0, size))
        torch.testing.assert_close(got[1], want[1].float(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["int8", "odd sizes int8"])
def test_int8_pages_have_the_bytes_of_the_format(name: str, level: str) -> None:
    """Scales and codes, wherever they lie; also of zeros, of numbers near zero, and of those that are not finite."""
    layer, seqs = LAYERS[name], Seqs.of([20], [30])
    q, k, v = layer.rows(20)
    k[0, 0], k[1, 1], k[2, 0] = 0.0, 1e-42, torch.arange(layer.K) - 20.0
    k[3, 0, 5], k[4, 0, 6], k[5, 0], v[6, 1, 2] = torch.nan, torch.inf, 3e38, -torch.inf
    cache = Cache(layer, 1)
    wanted = cache.copy()
    attend(cache, seqs, (q, k, v), level=level)
    wanted.write(wanted.slot_mapping(seqs), k, v)
    for got, want in zip(cache.pages, wanted.pages, strict=True):
        assert torch.equal(got, want)
    for got, want in zip(cache.sides, wanted.sides, strict=True):
        torch.testing.assert_close(got[0], want[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("level", LEVELS)
def test_keys_and_values_are_rounded_to_nearest_even(level: str) -> None:
    layer, seqs = Layer(1, 1, 37, 20), Seqs.of([20], [30])
    q, k, v = layer.rows(20)
    k[0, 0, :6] = torch.tensor([torch.inf, -torch.inf, torch.nan, 3.4e38, 1.00390625, 1.01171875])
    k[1].view(torch.int32).fill_(0x7FFFFFFF)  # the NaN that a carry would turn into zero
    cache = Cache(layer, 1)
    before = cache.copy()
    attend(cache, seqs, (q, k, v), level=level)
    before.write(before.slot_mapping(seqs), k, v)
    for got, want in zip(cache.pages, before.pages, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_keys_that_lie_token_by_token_are_refused() -> None:
    tape, pages = Tape(team(), max_rows=8, max_out=8, context=CONTEXT), torch.zeros(2, PAGE, 3, 64)
    for keys in (pages, torch.zeros(2, 3, 64, 2 * PAGE).movedim(-1, 1)):
        buffers = [tape.empty(ALL_ROWS, n, 64) for n in (9, 3, 3)]
        where = Locations(*buffers[:2])
        refs = PageRef(keys, where), PageRef(pages, where)
        with tape.recording(), pytest.raises(NotRecordable, match="lane by lane"):
            attention(*buffers, seqs=Seqs.of([]), kv=refs)


def test_what_has_no_native_kernel_is_refused() -> None:
    q, k, v = LAYERS["grouped"].rows(2)
    with pytest.raises(UserError, match="no tape"):
        attention(q, k, v, seqs=Seqs.of([2]), impl="native")
    wrong: list[tuple[tuple[torch.Tensor, ...], str]] = [
        ((q.double(), k.double(), v.double()), "fp32"),
        (tuple(torch.zeros(2, 2, 257) for _ in "qkv"), "257 elements of a head; at most 256"),
        (tuple(torch.zeros(2, n, 8) for n in (258, 2, 2)), "129 query heads that share a key head; at most 128"),
    ]
    for rows, reason in wrong:
        with Tape(team(), max_rows=8, max_out=8, context=8).recording(), pytest.raises(UserError, match=reason):
            attention(*rows, seqs=Seqs.of([2]), impl="native")
    specs = [StateSpec(name=n, shape=(3, 64), kind="paged") for n in "kv"]
    tensors = TensorCache(specs, 1, torch.float32)
    halves = tuple(PageRef(torch.zeros(2, PAGE, 3, 64, dtype=torch.float16), Locations(q, q)) for _ in "kv")
    cases: list[tuple[tuple[Paged, Paged] | None, str]] = [
        (None, "without a cache"),
        ((paged(tensors, "k"), paged(tensors, "v")), "TensorPaged"),
        (halves, "pages of f16"),  # type: ignore[list-item]
    ]
    for kv, reason in cases:
        tape = Tape(team(), max_rows=8, max_out=8, context=CONTEXT)
        buffers = [tape.empty(ALL_ROWS, *x.shape[1:]) for x in (q, k, v)]
        with tape.recording(), pytest.raises(NotRecordable, match=reason):
            attention(*buffers, seqs=Seqs.of([]), kv=kv)
