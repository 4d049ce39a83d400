"""Native recurrent layers: fp64 references, and bits that nothing but a row and its ancestors decide."""

import ctypes
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from native import LEVELS, int32, team
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.core.state import Slot, SlotRef, TensorSlot
from stretto.kernels.dscan import dscan
from stretto.kernels.glr import glr
from stretto.kernels.native.buffers import ALL_ROWS
from stretto.kernels.native.tape import Tape
from stretto.kernels.short_conv import short_conv

ROOM, MAX_OUT = 160, 128


@dataclass(frozen=True)
class Layer:
    """One recurrent operation. call: (rows, seqs, slot, impl) -> output; make: random rows."""

    call: Callable[[Sequence[Tensor], Seqs, Slot, Any], Tensor]
    make: Callable[[int], list[Tensor]]
    state: tuple[int, ...]


def glr_layer(heads: int, groups: int, num_k: int, num_v: int, *, delta: bool) -> Layer:
    def make(rows: int) -> list[Tensor]:
        q, k = torch.randn(2, rows, groups, num_k)
        gates = [-2 * torch.rand(rows, heads) ** 4, *([2 * torch.rand(rows, heads)] if delta else [])]
        return [q, torch.nn.functional.normalize(k, dim=-1), torch.randn(rows, heads, num_v), *gates]

    def call(rows: Sequence[Tensor], seqs: Seqs, slot: Slot, impl: Any) -> Tensor:
        q, k, v, g = rows[:4]
        beta = rows[4] if delta else None
        return glr(q, k, v, g=g, beta=beta, seqs=seqs, state=slot, scale=num_k**-0.5, impl=impl)

    return Layer(call, make, (heads, num_k, num_v))


def conv_layer(channels: int, width: int, *, bias: bool, silu: bool) -> Layer:
    weight, offset = torch.randn(channels, width), torch.randn(channels) if bias else None

    def call(rows: Sequence[Tensor], seqs: Seqs, slot: Slot, impl: Any) -> Tensor:
        parameters = [None if p is None else p.to(rows[0].dtype) for p in (weight, offset)]
        activation: Any = "silu" if silu else None
        return short_conv(rows[0], *parameters, seqs=seqs, state=slot, activation=activation, impl=impl)

    return Layer(call, lambda rows: [torch.randn(rows, channels)], (width - 1, channels))


def scan_layer(channels: int, num_states: int) -> Layer:
    A_log, D = torch.randn(channels, num_states), torch.randn(channels)

    def make(rows: int) -> list[Tensor]:
        x, dt = torch.randn(rows, channels), torch.rand(rows, channels) ** 4
        return [torch.randn(rows, num_states), x, torch.randn(rows, num_states), dt]

    def call(rows: Sequence[Tensor], seqs: Seqs, slot: Slot, impl: Any) -> Tensor:
        C, x, B, dt = rows
        parameters = {"A_log_FS": A_log.to(x.dtype), "D_F": D.to(x.dtype)}
        return dscan(x, dt, B, C, **parameters, seqs=seqs, state=slot, impl=impl)

    return Layer(call, make, (num_states, channels))


LAYERS = {
    "decay": lambda: glr_layer(6, 2, 37, 70, delta=False),
    "delta": lambda: glr_layer(4, 4, 66, 48, delta=True),
    "one column": lambda: glr_layer(3, 1, 2, 1, delta=True),
    "long keys": lambda: glr_layer(2, 1, 256, 17, delta=True),
    "conv": lambda: conv_layer(331, 4, bias=True, silu=True),
    "plain conv": lambda: conv_layer(16, 2, bias=False, silu=False),
    "scan": lambda: scan_layer(331, 16),
    "most states": lambda: scan_layer(16, 64),
    "one channel": lambda: scan_layer(1, 40),
    "one tap": lambda: conv_layer(5, 1, bias=True, silu=False),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> Layer:
    return LAYERS[request.param]()


class Recorded:
    """A recorded layer over a team of states; inputs and outputs are NaN wherever a step does not write them."""

    def __init__(self, layer: Layer, states: Tensor, *, level: str = LEVELS[0], num_threads: int = 2) -> None:
        self.tape = Tape(team(level, num_threads), max_rows=ROOM, max_out=MAX_OUT, context=1)
        self.states = states.clone()
        self.buffers = [self.tape.empty(ALL_ROWS, *x.shape[1:]) for x in layer.make(1)]
        placeholder, none = Seqs.of([ROOM]), torch.empty(0, dtype=torch.int64)
        with self.tape.recording():
            self.out = layer.call(self.buffers, placeholder, SlotRef(self.states, none, none), "native")
        self.held: list[object] = []

    @torch.inference_mode()
    def step(self, rows: Sequence[Tensor], seqs: Seqs, source: Sequence[int], destination: Sequence[int]) -> Tensor:
        shared = [s for b, s in enumerate(source) if s in [*destination[:b], *destination[b + 1 :]]]
        assert not shared, f"slots {shared} are read by one sequence while another one writes there"
        for buffer, x in zip(self.buffers, rows, strict=True):
            buffer.fill_(torch.nan)[: len(x)] = x
        self.out.fill_(torch.nan)
        parents = [p for b in range(seqs.num_seqs) for p in seqs.tree(b).parents]
        tables = {"starts": seqs.starts, "contexts": seqs.contexts, "num_definite": seqs.definite, "parents": parents}
        tables |= {"state_source": source, "state_destination": destination}
        self._set(self.tape.step, tables)
        self.tape.step.num_rows, self.tape.step.num_seqs = seqs.num_rows, seqs.num_seqs
        self.tape.run()
        return self.out[: seqs.num_rows].clone()

    @torch.inference_mode()
    def commit(self, seqs: Seqs, paths: Sequence[Sequence[int]]) -> None:
        for buffer in self.buffers:
            buffer.fill_(torch.nan)  # by now the rows may lie under something else
        rows = [-1] * (64 * seqs.num_seqs)
        for b, path in enumerate(paths):
            rows[64 * b : 64 * b + len(path)] = [seqs.starts[b] + row for row in path]
        self._set(self.tape.accepted, {"num_accepted": [len(path) for path in paths], "accepted_rows": rows})
        self.tape.commit()

    def _set(self, struct: ctypes.Structure, tables: dict[str, Sequence[int]]) -> None:
        arrays = {name: int32(values) for name, values in tables.items()}
        for name, array in arrays.items():
            setattr(struct, name, ctypes.addressof(array))
        self.held.append(arrays)


def take(rows: Sequence[Tensor], index: Sequence[int]) -> list[Tensor]:
    return [x[list(index)] for x in rows]


def one(layer: Layer, entry: Tensor, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(output, end state) of a plain sequence by itself, after some context that left `entry`."""
    recorded = Recorded(layer, torch.stack([torch.zeros_like(entry), entry]))
    out = recorded.step(rows, Seqs.of([len(rows[0])], [1]), [1], [1])
    return out, recorded.states[1]


def tree(rows: int, definite: int, seed: int) -> list[int]:
    """A chain of definite rows, then rows that continue any earlier one, or the context."""
    choose = random.Random(seed)
    return [i - 1 if i < definite else choose.randrange(-1, i) for i in range(rows)]


def path_to(parents: Sequence[int], row: int) -> list[int]:
    path = [row]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


# long branches and many rows that wait for their second child; 64 rows are the most that there may be
COMB = [*range(-1, 31), *range(32)]


def mixed() -> Seqs:
    """Plain sequences, drafts that are chains and trees, no rows, nothing definite, contexts and none."""
    lens, drafts = [1, 9, 64, 5, 0, 11, 40], [0, 8, 63, 5, 0, 7, 0]
    parents = [None, None, COMB, tree(5, 0, 1), None, tree(11, 4, 2), None]
    return Seqs.of(lens, [3, 0, 70, 1, 6, 2, 0], num_draft=drafts, parents=parents, num_step=6)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm()) if wanted.numel() else 0.0


def test_rows_and_states_are_as_close_to_fp64_as_torch(layer: Layer) -> None:
    seqs, states = mixed(), torch.randn(8, *layer.state)
    rows = layer.make(seqs.num_rows)
    entry = torch.stack([states[b + 1] if seqs.contexts[b] else torch.zeros_like(states[0]) for b in range(7)])
    exact, plain = TensorSlot(entry.double()), TensorSlot(entry)
    wanted = layer.call([x.double() for x in rows], seqs, exact, "reference")
    by_torch = layer.call(rows, seqs, plain, "torch")
    native = Recorded(layer, states)
    found = native.step(rows, seqs, range(1, 8), range(1, 8))
    assert error(found, wanted) <= 2 * error(by_torch, wanted) + 1e-9
    assert error(native.states[1:], exact.states) <= 2 * error(plain.states, exact.states) + 1e-9
    assert torch.equal(native.states[0], states[0]), "the zero state was written"


def test_long_sequences_stay_as_close_as_torch(layer: Layer) -> None:
    seqs, rows = Seqs.of([ROOM], num_step=1), layer.make(ROOM)
    if len(rows) > 1:
        rows[3] *= 1e-3  # slow decay: errors add up
    exact, plain = (TensorSlot(torch.zeros(1, *layer.state, dtype=t)) for t in (torch.float64, torch.float32))
    wanted = layer.call([x.double() for x in rows], seqs, exact, "reference")
    by_torch = layer.call(rows, seqs, plain, "torch")
    native = Recorded(layer, torch.randn(2, *layer.state))
    assert error(native.step(rows, seqs, [1], [1]), wanted) <= 2 * error(by_torch, wanted) + 1e-9
    assert error(native.states[1:], exact.states) <= 2 * error(plain.states, exact.states) + 1e-9


def test_bits_depend_neither_on_the_level_nor_on_threads(layer: Layer) -> None:
    seqs, states = mixed(), torch.randn(8, *layer.state)
    rows = layer.make(seqs.num_rows)
    paths = [
        path_to(seqs.tree(b).parents, n - 1)[d:] if n > d else []
        for b, (n, d) in enumerate(zip(seqs.lens, seqs.definite, strict=True))
    ]
    results = []
    for level in LEVELS:
        for num_threads in (1, 2, 3):
            recorded = Recorded(layer, states, level=level, num_threads=num_threads)
            out = recorded.step(rows, seqs, range(1, 8), range(1, 8))
            after = recorded.states.clone()
            recorded.commit(seqs, paths)
            results.append((out, after, recorded.states))
    assert not results[0][0].isnan().any()
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_a_sequence_has_the_same_bits_alone_and_token_by_token(layer: Layer) -> None:
    states = torch.randn(6, *layer.state)
    seqs, source, destination = Seqs.of([2, 33, 1], [4, 1, 0]), [1, 2, 3], [1, 4, 5]
    rows = layer.make(36)
    company = Recorded(layer, states)
    out = company.step(rows, seqs, source, destination)
    mine = take(rows, range(2, 35))
    alone, end = one(layer, states[2], mine)
    assert torch.equal(out[2:35], alone) and torch.equal(company.states[4], end)
    stepwise = Recorded(layer, states)
    for t in range(33):
        y = stepwise.step(take(mine, [t]), Seqs.of([1], [1 + t], num_step=1), [2], [2])
        assert torch.equal(y[0], alone[t])
    assert torch.equal(stepwise.states[2], end)


@pytest.mark.parametrize("parents", [COMB, [-1], tree(64, 3, 3), tree(20, 1, 4), tree(9, 0, 5)], ids=len)
def test_rows_of_a_tree_are_those_of_their_paths(layer: Layer, parents: list[int]) -> None:
    definite = {64: 1 if parents is COMB else 3, 20: 1, 9: 0, 1: 0}[len(parents)]
    states, rows = torch.randn(3, *layer.state), layer.make(len(parents) + 2)
    recorded = Recorded(layer, states)
    n = len(parents)
    seqs = Seqs.of([2, n], [9, 5], num_draft=[1, n - definite], parents=[None, parents], num_step=2)
    out = recorded.step(rows, seqs, [1, 2], [1, 2])
    mine = take(rows, range(2, n + 2))
    for row in range(n):
        path = path_to(parents, row)
        assert torch.equal(out[2 + row], one(layer, states[2], take(mine, path))[0][-1])
    assert torch.equal(recorded.states[2], one(layer, states[2], take(mine, range(definite)))[1])


@pytest.mark.parametrize("context", [0, 5])
def test_a_replay_leaves_what_definite_rows_leave(layer: Layer, context: int) -> None:
    states = torch.randn(9, *layer.state)
    states[0] = 0
    chain, branches = list(range(-1, 12)), tree(30, 2, 6)
    parents = [None, branches, chain, COMB, None]
    lens, drafts = [3, 30, 13, 64, 6], [0, 28, 12, 63, 5]
    definite = [n - d for n, d in zip(lens, drafts, strict=True)]
    leaf = max(range(30), key=lambda row: len(path_to(branches, row)) * (path_to(branches, row)[:2] == [0, 1]))
    paths = [[], path_to(branches, leaf)[2:], [1, 2, 3], [*range(1, 32), 63], []]
    assert len(paths[1]) > 2
    seqs = Seqs.of(lens, [context] * 5, num_draft=drafts, parents=parents, num_step=5)
    rows = layer.make(seqs.num_rows)
    recorded = Recorded(layer, states)
    recorded.step(rows, seqs, [1, 2, 1, 4, 7], [5, 2, 6, 4, 7])
    recorded.commit(seqs, paths)
    for b, (source, destination) in enumerate([(1, 5), (2, 2), (1, 6), (4, 4), (7, 7)]):
        kept = [seqs.starts[b] + row for row in [*range(definite[b]), *paths[b]]]
        entry = states[source] if context else states[0]
        assert torch.equal(recorded.states[destination], one(layer, entry, take(rows, kept))[1])
    for slot in (0, 1, 3, 8):
        assert torch.equal(recorded.states[slot], states[slot])


def test_without_definite_rows_the_state_stays(layer: Layer) -> None:
    states = torch.randn(6, *layer.state)
    rows, recorded = layer.make(3), Recorded(layer, states)
    seqs = Seqs.of([0, 3, 0, 0], [4, 4, 0, 4], num_draft=[0, 3, 0, 0], num_step=4)
    recorded.step(rows, seqs, [1, 2, 3, 5], [1, 2, 3, 4])
    wanted = torch.stack([*states[:3], torch.zeros_like(states[0]), states[5], states[5]])
    assert torch.equal(recorded.states, wanted)
    recorded.commit(seqs, [[], [0, 1, 2], [], []])
    assert torch.equal(recorded.states[2], one(layer, states[2], rows)[1])


def test_nan_shows_in_the_rows_that_follow_and_nowhere_else(layer: Layer) -> None:
    seqs, states = Seqs.of([9, 9], [3, 3]), torch.randn(3, *layer.state)
    for operand in range(len(layer.make(1))):
        rows = layer.make(18)
        clean = Recorded(layer, states).step(rows, seqs, [1, 2], [1, 2])
        rows[operand][4] = torch.nan
        recorded = Recorded(layer, states)
        out = recorded.step(rows, seqs, [1, 2], [1, 2])
        assert out[4].isnan().all()
        assert torch.equal(out[:4], clean[:4]) and torch.equal(out[9:], clean[9:])
        if len(rows) > 1 and operand:  # all but queries reach the state
            assert recorded.states[1].isnan().all() and not recorded.states[2].isnan().any()


def test_operands_may_be_columns_of_wider_rows() -> None:
    layer = glr_layer(4, 2, 5, 3, delta=True)
    rows = layer.make(7)
    recorded = Recorded(layer, torch.zeros(2, *layer.state))
    seqs = Seqs.of([7])
    wanted = recorded.step(rows, seqs, [1], [1])
    tape = Tape(team(), max_rows=ROOM, max_out=8, context=1)
    whole = tape.empty(ALL_ROWS, 10 + 10 + 12 + 4 + 4)
    with tape.recording():
        q, k, v, g, beta = whole.split_with_sizes([10, 10, 12, 4, 4], -1)
        heads = (q.view(ROOM, 2, 5), k.view(ROOM, 2, 5), v.view(ROOM, 4, 3))
        out = glr(*heads, g=g, beta=beta, seqs=Seqs.of([ROOM]), scale=5**-0.5, impl="native")
    with torch.inference_mode():
        whole[:7] = torch.cat([x.flatten(1) for x in rows], -1)
    for name, _ in tape.step._fields_:
        setattr(tape.step, name, getattr(recorded.tape.step, name))
    tape.run()
    assert torch.equal(out[:7], wanted)
