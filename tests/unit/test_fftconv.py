"""The long convolution against scipy: whole texts, splits, packing, draft trees, and the bits of step rows."""

import random

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve

from stretto.core.seqs import Accepted, Seqs
from stretto.core.state import StateSpec, TensorCache, TensorPaged
from stretto.kernels.fftconv import fftconv
from stretto.kernels.fftconv.torch_ import _fast_size
from stretto.mixers.long_conv import LongConv

F64 = torch.float64
both = pytest.mark.parametrize("impl", ["torch", "reference"])


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def path_to(parents, row):
    """The rows from the context to `row`."""
    return [*(path_to(parents, parents[row]) if parents[row] >= 0 else ()), row]


def random_rows(rng, definite, num_nodes, tree):
    """A parent table: a chain of definite rows, then a random draft."""
    rows = range(definite, definite + num_nodes)
    return (*range(-1, definite - 1), *(rng.randint(definite - 1, r - 1) if tree else r - 1 for r in rows))


def random_path(rng, parents, definite):
    """The nodes of a random accepted path, possibly none."""
    return [row for row in path_to(parents, rng.randint(definite - 1, len(parents) - 1)) if row >= definite]


def oracle(u, kernel):
    """[T, D] by scipy, in float64."""
    if not len(u):
        return u
    u, taps = u.detach().double().numpy(), kernel.detach().double().numpy().T
    return torch.from_numpy(fftconvolve(u, taps, axes=0)[: len(u)])


def fresh(num_seqs, width, dtype=F64):
    spec = StateSpec(name="u", shape=(width,), kind="paged")
    return TensorCache([spec], num_seqs, dtype)


def store(cache) -> TensorPaged:
    ref = cache["u"]
    assert isinstance(ref, TensorPaged)
    return ref


@both
@pytest.mark.parametrize(("rows", "taps"), [(1, 1), (1, 9), (5, 1), (37, 37), (37, 100), (60, 7), (300, 300)])
def test_whole_texts(impl, rows, taps):
    u, kernel = torch.randn(rows, 3, dtype=F64), torch.randn(3, taps, dtype=F64)
    close(fftconv(u, kernel, seqs=Seqs.of([rows]), impl=impl), oracle(u, kernel))


@both
@pytest.mark.parametrize("taps", [4, 200])
@pytest.mark.parametrize("num_step", [0, 1])
@pytest.mark.parametrize("cuts", [(), (1,), (7, 8), (45,), tuple(range(1, 46))], ids=str)
def test_splits(impl, taps, num_step, cuts):
    u, kernel, cache, context, out = torch.randn(46, 2, dtype=F64), torch.randn(2, taps, dtype=F64), fresh(1, 2), 0, []
    for part in u.tensor_split(cuts):
        seqs = Seqs.of([len(part)], [context], num_step=num_step)
        out.append(fftconv(part, kernel, seqs=seqs, history=store(cache), impl=impl))
        context += len(part)
    close(torch.cat(out), oracle(u, kernel))
    assert torch.equal(store(cache).tensors[0], u)


@both
@pytest.mark.parametrize("num_step", [0, 2, 5])
def test_packed_texts_with_and_without_context(impl, num_step):
    lens, contexts = [3, 0, 1, 9, 3], [0, 4, 30, 5, 0]
    texts = [torch.randn(c + n, 4, dtype=F64) for c, n in zip(contexts, lens, strict=True)]
    kernel, cache = torch.randn(4, 11, dtype=F64), fresh(5, 4)
    store(cache).append(torch.cat([t[:c] for t, c in zip(texts, contexts, strict=True)]), Seqs.of(contexts))
    new = torch.cat([t[c:] for t, c in zip(texts, contexts, strict=True)])
    seqs = Seqs.of(lens, contexts, num_step=num_step)
    want = torch.cat([oracle(t, kernel)[c:] for t, c in zip(texts, contexts, strict=True)])
    close(fftconv(new, kernel, seqs=seqs, history=store(cache), impl=impl), want)
    without = fftconv(new, kernel, seqs=Seqs.of(lens, num_step=num_step), impl=impl)
    close(without, torch.cat([oracle(t[c:], kernel) for t, c in zip(texts, contexts, strict=True)]))
    assert fftconv(new[:0], kernel, seqs=Seqs.of([]), impl=impl).shape == (0, 4)
    assert fftconv(new[:0], kernel, seqs=Seqs.of([0, 0]), impl=impl).shape == (0, 4)


@both
@pytest.mark.parametrize("taps", [3, 50])
@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("seed", range(3))
def test_draft_rows_follow_their_path_and_commit_keeps_it(impl, taps, tree, seed):
    rng, kernel, cache = random.Random(seed), torch.randn(2, taps, dtype=F64), fresh(3, 2)
    texts = [torch.zeros(0, 2, dtype=F64) for _ in range(3)]
    for _ in range(5):
        definite = [rng.randint(1, 4) for _ in range(3)]
        nodes = [rng.randint(0, 7) for _ in range(3)]
        tables = [random_rows(rng, d, n, tree) for d, n in zip(definite, nodes, strict=True)]
        pieces = [torch.randn(len(t), 2, dtype=F64) for t in tables]
        seqs = Seqs.of(
            [len(t) for t in tables],
            [len(t) for t in texts],
            num_draft=nodes,
            parents=tables if tree else None,
            num_step=3,
        )
        got = fftconv(torch.cat(pieces), kernel, seqs=seqs, history=store(cache), impl=impl).split(seqs.lens)
        for b, table in enumerate(tables):
            for row in range(len(table)):
                path = torch.cat([texts[b], pieces[b][path_to(table, row)]])
                close(got[b][row], oracle(path, kernel)[-1])
        paths = [random_path(rng, t, d) for t, d in zip(tables, definite, strict=True)]
        cache.commit(Accepted.of(seqs, paths))
        for b, path in enumerate(paths):
            texts[b] = torch.cat([texts[b], pieces[b][[*range(definite[b]), *path]]])
            assert torch.equal(store(cache).tensors[b], texts[b])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("taps", [5, 64])
def test_step_rows_have_one_value_alone_in_a_draft_and_in_a_batch(dtype, taps):
    u, kernel = torch.randn(20, 37).to(dtype), torch.randn(37, taps)
    cache, alone = fresh(1, 37, dtype), []
    for t in range(20):
        alone.append(fftconv(u[t : t + 1], kernel, seqs=Seqs.of([1], [t], num_step=1), history=store(cache)))
    parents = (-1, 0, 0, 2, 1, 3)  # rows 0 2 3 5 spell the text, 1 and 4 are wrong
    for context in (0, 1, 15):
        cache = fresh(2, 37, dtype)
        store(cache).append(torch.cat([u[:context], u[:context]]), Seqs.of([context, context]))
        rows = torch.randn(6, 37).to(dtype)
        rows[[0, 2, 3, 5]] = u[context : context + 4]
        seqs = Seqs.of([6, 4], [context] * 2, num_draft=[5, 3], parents=[parents, None], num_step=2)
        got = fftconv(torch.cat([rows, u[context : context + 4]]), kernel, seqs=seqs, history=store(cache))
        want = torch.cat(alone[context : context + 4])
        assert torch.equal(got[[0, 2, 3, 5]], want) and torch.equal(got[6:], want)


def test_gradients_equal_finite_differences():
    u, kernel = torch.randn(7, 2, dtype=F64, requires_grad=True), torch.randn(2, 5, dtype=F64, requires_grad=True)
    tree = Seqs.of([4], num_draft=[3], parents=[(-1, 0, 0, 2)], num_step=1)
    for seqs in (Seqs.of([4, 3]), Seqs.of([7], num_step=1), tree):
        rows = u[: seqs.num_rows]
        assert torch.autograd.gradcheck(
            lambda u, k, seqs=seqs: fftconv(u, k, seqs=seqs), (rows, kernel), fast_mode=True
        )


def test_single_precision_stays_near_scipy():
    """The error of an fp32 transform grows with log T; the bound leaves a factor of ten."""
    u, kernel = torch.randn(3000, 4), torch.randn(4, 3000) / 50
    want = oracle(u, kernel)
    error = (fftconv(u, kernel, seqs=Seqs.of([3000])) - want).abs().max() / want.abs().max()
    assert error < 2.0**-24 * np.log2(3000) * 10
    assert fftconv(u.bfloat16(), kernel, seqs=Seqs.of([3000])).dtype == torch.bfloat16


def test_transform_sizes_are_the_next_even_number_of_small_factors():
    def is_fast(n):
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    for n in [*range(1, 700), 8191, 100_003]:
        want = next(m for m in range(n + n % 2, 3 * n + 3) if m % 2 == 0 and m > 0 and is_fast(m))
        assert _fast_size(n) == want


# -- the layer -------------------------------------------------------------------------------------------------------


def test_long_conv_is_its_equations():
    mixer = LongConv.Config(d_model=6, max_len=20, lam=0.3).build().double()
    with torch.no_grad():
        mixer.kernel.normal_()
    x = torch.randn(33, 6, dtype=F64)
    kernel = torch.where(mixer.kernel.abs() <= 0.3, 0.0, mixer.kernel - 0.3 * mixer.kernel.sign())
    assert 0 < (kernel == 0).sum() < kernel.numel()
    h = torch.nn.functional.gelu(oracle(x, kernel) + mixer.skip * x, approximate="tanh")
    want = torch.nn.functional.glu(torch.nn.functional.linear(h, mixer.out.weight, mixer.out.bias), dim=1)
    close(mixer(x, Seqs.of([33])), want)


def test_long_conv_starts_alive_and_forgets_beyond_its_kernel():
    mixer = LongConv.Config(d_model=64, max_len=512).build()
    assert (mixer.kernel.abs() > mixer.config.lam).float().mean() > 0.3
    early, late = mixer.kernel[:, :50].std(), mixer.kernel[-8:, -50:].std()
    assert early > 0.015 and late < 0.005
    small = LongConv.Config(d_model=4, max_len=5).build().double()
    x = torch.randn(12, 4, dtype=F64)
    changed = torch.cat([torch.randn(1, 4, dtype=F64), x[1:]])
    y, z = small(x, Seqs.of([12])), small(changed, Seqs.of([12]))
    close(y[5:], z[5:])
    assert not torch.allclose(y[4], z[4], atol=1e-6)
