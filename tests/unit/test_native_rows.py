"""Row-wise native operations against fp64, and the tape that records them."""

import ctypes
import math
from collections.abc import Callable

import pytest
import torch
from native import LEVELS, run_rows, team
from torch import Tensor

from stretto.core.errors import UserError
from stretto.core.seqs import Seqs
from stretto.kernels.native.buffers import ALL_ROWS
from stretto.kernels.native.guard import NotRecordable
from stretto.kernels.native.tape import Tape
from stretto.kernels.rmsnorm import rms_norm
from stretto.kernels.rope import Rope, apply_rope
from stretto.kernels.rowwise import divided, glu, residual_add, take_rows
from stretto.kernels.rowwise.native import best

ROPE = Rope(dim=6, scaling="linear", factor=2.0)
POSITIONS = [0, 1, 5, 4000, 17, 17, 2, 3, 1000, 4095, 7]


def gates(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.split_with_sizes([x.shape[1] // 2] * 2, 1)[0], x.split_with_sizes([x.shape[1] // 2] * 2, 1)[1]


def norm_of_heads(x: Tensor, **options: object) -> Tensor:
    return rms_norm(x.unflatten(1, (3, -1)), WEIGHT[: x.shape[1] // 3], eps=1e-6, **options)  # type: ignore[arg-type]


WEIGHT = torch.rand(512, generator=torch.Generator().manual_seed(0)) + 0.5
SEQS = Seqs.of([1] * len(POSITIONS), POSITIONS)
OPERATIONS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "norm": (45, lambda x, **o: rms_norm(x, WEIGHT[:45], eps=1e-6, **o)),
    "norm without weight": (64, lambda x, **o: rms_norm(x, eps=1e-6, **o)),
    "norm of groups": (66, lambda x, **o: rms_norm(x, WEIGHT[:66], eps=1e-6, groups=3, **o)),
    "norm of heads": (51, norm_of_heads),
    "gated norm": (40, lambda x, **o: rms_norm(x, WEIGHT[:40], eps=1e-6, gate=x, **o)),
    "norm, then gate": (40, lambda x, **o: rms_norm(x, WEIGHT[:40], eps=1e-6, gate=x, norm_before_gate=True, **o)),
    "rope": (3 * 10, lambda x, **o: apply_rope(x.unflatten(1, (3, 10)), ROPE, SEQS, **o)),
    "silu": (2 * 37, lambda x, **o: glu(*gates(x), activation="silu", **o)),
    "gelu": (2 * 37, lambda x, **o: glu(*gates(x), activation="gelu_tanh", **o)),
    "residual": (33, lambda x, **o: residual_add(x, x, scale=0.37, **o)),
    "divided": (33, lambda x, **o: divided(x, 3.0, **o)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_equal_fp64(name: str) -> None:
    width, op = OPERATIONS[name]
    x = torch.randn(len(POSITIONS), width) * 3
    x[1] *= 30  # where activations saturate
    got = run_rows(op, x, positions=POSITIONS)
    want = op(x, impl="reference")
    torch.testing.assert_close(got, want, rtol=1e-6, atol=3e-6)
    for level in LEVELS:
        assert torch.equal(run_rows(op, x, positions=POSITIONS, level=level, num_threads=1), got), level
    alone = [run_rows(op, x[r : r + 1], positions=POSITIONS[r : r + 1]) for r in range(len(x))]
    assert torch.equal(torch.cat(alone), got)


@pytest.mark.parametrize("name", OPERATIONS)
def test_not_a_number_stays_in_its_row(name: str) -> None:
    width, op = OPERATIONS[name]
    x = torch.randn(9, width)
    x[4] = torch.nan
    got = run_rows(op, x, positions=list(range(9))).flatten(1)
    assert got[4].isnan().all() and got[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


def test_rows_are_taken_in_order() -> None:
    x, placeholder = torch.randn(9, 20), torch.empty(0)
    got = run_rows(lambda x: take_rows(x, placeholder), x, out_rows=[7, 0, 7])
    assert torch.equal(got, x[[7, 0, 7]])


def test_the_best_entry_of_a_row() -> None:
    x = torch.randn(6, 1003)
    x[1, 900] = x[1, 5] = 9.0  # a tie: the lowest
    x[2, 1001] = 50.0  # beyond what counts
    x[3, 77] = math.nan
    x[4, 1000 - 1] = 20.0
    x[5, 3] = -math.inf
    found: list[Tensor] = []

    def op(x: Tensor) -> Tensor:
        values, ids = best(x, 1000)
        found.append(ids)
        return values

    values, counted = run_rows(op, x), x[:, :1000]
    assert values[3].isnan()
    keep = [0, 1, 2, 4, 5]
    assert torch.equal(values[keep], counted[keep].max(1).values)
    assert found[0][keep].tolist() == [int((row == row.max()).nonzero()[0]) for row in counted[keep]]


def tape(**sizes: int) -> Tape:
    return Tape(team(), **{"max_rows": 16, "max_out": 4, "context": 32, **sizes})


def test_memory_that_nobody_holds_is_used_again() -> None:
    one = tape()
    x = one.empty(ALL_ROWS, 64)
    with one.recording():
        for _ in range(50):
            x = residual_add(x, x)
    assert len(one.buffers.memory) <= 3
    held = [one.empty(ALL_ROWS, 64) for _ in range(10)]
    assert len({t.data_ptr() for t in held}) == 10


def test_an_operation_that_would_vanish_is_refused() -> None:
    one = tape()
    x = one.empty(ALL_ROWS, 64)
    with one.recording():
        views = x.view(-1, 8, 8).flatten(1).split_with_sizes([32, 32], 1)
        assert views[1].data_ptr() == x.data_ptr() + 128
        with pytest.raises(NotRecordable, match="sum"):
            x.sum(-1)
        with pytest.raises(NotRecordable, match="concatenates rows"):
            torch.cat([x, x])
    with pytest.raises(UserError, match="no tape is being recorded"):
        residual_add(x, x, impl="native")


def test_a_tape_that_has_run_does_not_grow() -> None:
    one = tape()
    x = one.empty(ALL_ROWS, 64)
    with one.recording():
        y = residual_add(x, x)
    x.fill_(1.5)
    one.step.num_rows = 3
    one.run()
    assert torch.equal(y[:3], torch.full((3, 64), 3.0)) and y[3:].sum() == 0
    assert list(one.profile(repeat=1)) == ["residual"] == one.names
    with one.recording(), pytest.raises(AssertionError, match="cannot grow"):
        residual_add(x, x)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_chunk_runs_exactly_once(threads: int) -> None:
    """Long lists of operations with many chunks and few, on more threads than cores: what one writes the next reads."""
    one = Tape(team(LEVELS[0], threads), max_rows=256, max_out=1, context=1)
    first = one.empty(ALL_ROWS, 4)
    x = first
    with one.recording():
        for _ in range(400):
            x = residual_add(x, first)
    for rows in (1, 3, 100, 256, 8, 9) * 40:
        ctypes.memset(first.data_ptr(), 0, first.nbytes)
        first[:rows] = torch.arange(rows).float()[:, None]
        one.step.num_rows = rows
        one.run()
        assert torch.equal(x[:rows, 0], 401.0 * torch.arange(rows))
