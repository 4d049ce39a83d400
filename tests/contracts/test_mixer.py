"""The laws of the mixer socket (stretto/core/mixer.py), over every card that claims the ability, in fp64.

Channels that look back at earlier tokens carry a state as mixers do, and obey the same laws.
"""

import random
from collections.abc import Iterator

import pytest
import torch
from laws import (
    ATOL,
    Run,
    alone,
    carrying,
    close,
    lively,
    path_to,
    poisoned_memory,
    random_path,
    random_rows,
    relative_error,
    run,
)
from torch import Tensor

from stretto.core.card import Can, Card
from stretto.core.seqs import Seqs
from stretto.core.state import TensorCache, TensorPaged, TensorSlot

F64 = torch.float64


DRAFTS = [
    pytest.param(card, tree, id=f"{card.name}-{'tree' if tree else 'chain'}")
    for tree, can in ((False, Can.CHAIN), (True, Can.TREE))
    for card in carrying(Can.CAUSAL | can)
]


def over(can: Can) -> pytest.MarkDecorator:
    """Run a law over the cards with these abilities."""
    return pytest.mark.parametrize("card", carrying(can), ids=lambda card: card.name)


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    with poisoned_memory():
        yield


def rows(num: int, width: int) -> Tensor:
    return torch.randn(num, width, dtype=F64)


@over(Can.CAUSAL)
@pytest.mark.parametrize("step", [False, True], ids=["chunked", "step"])
@pytest.mark.parametrize("cuts", [(), (1,), (7, 8), (69,), (64,), (3, 3, 65), tuple(range(1, 70))], ids=str)
def test_any_split_gives_the_same_output_and_state(card: Card, cuts: tuple[int, ...], step: bool) -> None:
    mixer = lively(card)
    x = rows(70, mixer.d_model)
    whole, end = run(mixer, [x])
    parts, end_of_parts = run(mixer, x.tensor_split(cuts), step=step)
    close(whole, alone(mixer, x))
    close(parts, whole)
    close(end_of_parts.cache.tensors(), end.cache.tensors())


@over(Can.CAUSAL)
def test_gradients_flow_through_a_carried_state(card: Card) -> None:
    mixer = lively(card)
    x = rows(20, mixer.d_model).requires_grad_()
    weights = rows(20, mixer.d_model)
    wanted = torch.autograd.grad((alone(mixer, x) * weights).sum(), [x, *mixer.parameters()])
    for step in (False, True):
        y, _ = run(mixer, x.tensor_split((3, 4, 11)), step=step)
        close(torch.autograd.grad((y * weights).sum(), [x, *mixer.parameters()]), wanted)


@over(Can.PACKED)
def test_packed_sequences_equal_each_one_alone(card: Card) -> None:
    mixer = lively(card)
    lens = [1, 9, 0, 2, 70, 1]
    x = rows(sum(lens), mixer.d_model).requires_grad_()
    weights = rows(sum(lens), mixer.d_model)
    leaves = [x, *mixer.parameters()]
    packed = mixer(x, Seqs.of(lens))
    separate = torch.cat([alone(mixer, part) for part in x.split_with_sizes(lens) if len(part)])
    close(packed, separate)
    grads = [torch.autograd.grad((y * weights).sum(), leaves) for y in (packed, separate)]
    close(grads[0], grads[1], atol=1e-9)


@over(Can.CAUSAL | Can.PACKED)
def test_calls_may_mix_step_and_chunked_sequences(card: Card) -> None:
    mixer = lively(card)
    x = [rows(24, mixer.d_model) for _ in range(4)]
    together = Run(mixer, 4)
    outs: list[list[Tensor]] = [[], [], [], []]
    taken = [0, 0, 0, 0]
    for num_step, lens in (
        (0, (5, 0, 3, 9)),
        (2, (1, 2, 4, 0)),
        (1, (0, 7, 1, 12)),
        (3, (1, 1, 1, 1)),
        (4, (3, 0, 2, 2)),
    ):
        pieces = [part[at : at + n] for part, at, n in zip(x, taken, lens, strict=True)]
        for found, y in zip(outs, together(pieces, num_step=num_step), strict=True):
            found.append(y)
        taken = [at + n for at, n in zip(taken, lens, strict=True)]
    for b in range(4):
        wanted, end = run(mixer, [x[b][: taken[b]]])
        close(torch.cat(outs[b]), wanted)
        for name in together.cache:
            held, single = together.cache[name], end.cache[name]
            if isinstance(held, TensorPaged) and isinstance(single, TensorPaged):
                close(held.tensors[b], single.tensors[0])
            elif isinstance(held, TensorSlot) and isinstance(single, TensorSlot):
                close(held.states[b], single.states[0])


@over(Can.CAUSAL)
@pytest.mark.parametrize("num_step", [0, 1], ids=["chunked", "step"])
def test_a_row_does_not_see_later_rows(card: Card, num_step: int) -> None:
    mixer = lively(card)
    x = rows(20, mixer.d_model)
    before, _ = run(mixer, [x], step=bool(num_step))
    for t in (0, 1, 7, 19):
        changed = x.clone()
        changed[t] += 1.0
        after, _ = run(mixer, [changed], step=bool(num_step))
        close(after[:t], before[:t], atol=0.0 if Can.BITWISE_CAUSAL in card.can else ATOL)
        assert not torch.equal(after[t], before[t])


@over(Can.CAUSAL | Can.PACKED)
def test_a_sequence_of_nan_leaves_its_neighbours_alone(card: Card) -> None:
    mixer = lively(card)
    x = [rows(n, mixer.d_model) for n in (6, 9, 4)]
    for num_step in (0, 3):
        wanted = Run(mixer, 3)(x, num_step=num_step)
        spoiled = Run(mixer, 3)
        found = spoiled([x[0], torch.full_like(x[1], torch.nan), x[2]], num_step=num_step)
        close([found[0], found[2]], [wanted[0], wanted[2]])
        assert found[1].isnan().all()


@pytest.mark.parametrize(("card", "tree"), DRAFTS)
@pytest.mark.parametrize("seed", range(3))
def test_drafts_read_their_path_and_commit_keeps_it(card: Card, tree: bool, seed: int) -> None:
    """Rounds of drafts, some without any, several sequences at once; what was rejected leaves no trace."""
    rng = random.Random(seed)
    mixer = lively(card)
    num_seqs = 3
    state = Run(mixer, num_seqs)
    kept = [rows(n, mixer.d_model) for n in (5, 0, 2)]
    state(kept)
    for turn in range(6):
        pieces, tables, num_draft = [], [], []
        for _ in range(num_seqs):
            definite = rng.choice((0, 1, 1, 2))
            nodes = 0 if turn == 3 else rng.randint(0, 6)
            tables.append(random_rows(rng, definite, nodes, tree=tree))
            pieces.append(rows(definite + nodes, mixer.d_model))
            num_draft.append(nodes)
        found = state(pieces, num_step=num_seqs, num_draft=num_draft, parents=tables if tree else None)
        for b, table in enumerate(tables):
            for row in range(len(table)):
                path = path_to(table, row)
                close(found[b][row], alone(mixer, torch.cat([kept[b], pieces[b][path]]))[-1])
        paths = [random_path(rng, table, len(table) - n) for table, n in zip(tables, num_draft, strict=True)]
        if turn == 4:
            paths = [[] for _ in paths]
        state.commit(paths)
        for b, path in enumerate(paths):
            read = [*range(len(tables[b]) - num_draft[b]), *path]
            kept[b] = torch.cat([kept[b], pieces[b][read]])
        fresh = Run(mixer, num_seqs)
        fresh(kept)
        close(state.cache.tensors(), fresh.cache.tensors())


REPLAYED = [
    card
    for card in carrying(Can.CAUSAL | Can.TREE)
    if all(spec.kind == "slot" for spec in card.tiny_module().state_specs)
]


@pytest.mark.parametrize("card", REPLAYED, ids=lambda card: card.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_decode_verification_and_replay_have_the_same_bits(card: Card, dtype: torch.dtype) -> None:
    mixer = lively(card, dtype)
    x = [torch.randn(12, mixer.d_model).to(dtype) for _ in range(3)]
    decoded = []
    for part in x:  # every sequence alone, a row per call
        y, end = run(mixer, list(part[:, None]), step=True, dtype=dtype)
        decoded.append((y, end.cache.tensors()))
    together = Run(mixer, 3, dtype)
    parents = (-1, 0, 1, 1, 3, 2)  # rows 0 1 2 5 spell one path, rows 3 4 another
    spelt = [0, 1, 2, 5]
    for first in (0, 4, 8):
        pieces = [torch.randn(6, mixer.d_model).to(dtype) for _ in x]
        for piece, part in zip(pieces, x, strict=True):
            piece[spelt] = part[first : first + 4]
        found = together(pieces, num_step=3, num_draft=[5, 5, 5], parents=[parents] * 3)
        for y, (wanted, _) in zip(found, decoded, strict=True):
            assert torch.equal(y[spelt], wanted[first : first + 4])
        together.commit([spelt[1:]] * 3)
    for b, (_, ends) in enumerate(decoded):
        for held, wanted in zip(together.cache.tensors(), ends, strict=True):
            assert torch.equal(held[b], wanted[0])


@over(Can.CAUSAL | Can.SNAPSHOT)
def test_a_snapshot_does_not_notice_what_happens_later(card: Card) -> None:
    mixer = lively(card)
    x, other = rows(20, mixer.d_model), rows(11, mixer.d_model)
    state = Run(mixer)
    state([x[:9]])
    saved, contexts = state.cache.snapshot(), list(state.contexts)
    wanted = state([x[9:]], num_step=1)
    end = [t.clone() for t in state.cache.tensors()]
    state.cache, state.contexts = saved.snapshot(), list(contexts)
    state([other], num_step=1, num_draft=[4])
    state.commit([[]])
    state.cache, state.contexts = saved, contexts
    assert torch.equal(state([x[9:]], num_step=1)[0], wanted[0])
    for found, held in zip(state.cache.tensors(), end, strict=True):
        assert torch.equal(found, held)


@over(Can.CAUSAL)
def test_the_declared_bytes_are_allocated(card: Card) -> None:
    dtype = torch.bfloat16
    mixer = lively(card, dtype)
    state = Run(mixer, 2, dtype)
    state([torch.randn(n, mixer.d_model).to(dtype) for n in (7, 3)])
    declared = sum(
        spec.nbytes(dtype) * (sum(state.contexts) if spec.kind == "paged" else 2) for spec in mixer.state_specs
    )
    assert sum(t.nbytes for t in state.cache.tensors()) == declared
    empty = TensorCache(mixer.state_specs, 2, dtype).tensors()
    assert [t.dtype for t in state.cache.tensors()] == [t.dtype for t in empty]


@over(Can.PACKED)
def test_gradients_equal_finite_differences(card: Card) -> None:
    mixer = lively(card)
    x = rows(5, mixer.d_model).requires_grad_()
    parameters = [p.requires_grad_() for p in mixer.parameters()]

    def forward(x: Tensor, *_: Tensor) -> Tensor:
        y: Tensor = mixer(x, Seqs.of([4, 1]))
        return y

    assert torch.autograd.gradcheck(forward, (x, *parameters), fast_mode=True)


@over(Can.CAUSAL)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=str)
def test_narrow_dtypes_stay_near_fp64(card: Card, dtype: torch.dtype, bound: float) -> None:
    mixer = lively(card, dtype)
    x = torch.randn(70, mixer.d_model).to(dtype)
    chunked = alone(mixer, x)
    stepped, _ = run(mixer, list(x[:, None]), step=True, dtype=dtype)
    wanted = alone(mixer.double(), x.double())  # the same rounded parameters
    assert chunked.dtype == stepped.dtype == dtype
    assert relative_error(chunked, wanted) < bound and relative_error(stepped, wanted) < bound
