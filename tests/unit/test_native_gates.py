"""Native gates of recurrent layers: as close to fp64 as torch, with bits that only their own row decides."""

from collections.abc import Callable

import pytest
import torch
from native import LEVELS, run_rows
from torch import Tensor

from stretto.kernels.gates import log_decay, scale_heads, sigmoid_gate, time_step
from stretto.kernels.rmsnorm import rms_norm, unit_length
from stretto.kernels.rowwise import glu

RANDOM = torch.Generator().manual_seed(0)  # made at import: what was imported before must not change them
PER_CHANNEL, ZEROS = torch.randn(64, generator=RANDOM), torch.zeros(999)
POSITIVE = torch.rand(64, generator=RANDOM) + 0.5
LIMIT = (0.1, 2.5)


def cut(x: Tensor, *widths: int) -> tuple[Tensor, ...]:
    """Columns of wide rows, as a mixer gets them from a projection."""
    return x.split_with_sizes([*widths, x.shape[1] - sum(widths)], 1)


def heads(x: Tensor, width: int, number: int = 3) -> tuple[Tensor, Tensor]:
    """(the first columns as heads of `width`, the rest)."""
    left, rest = cut(x, number * width)
    return left.unflatten(1, (number, width)), rest


def scaled_by_rows(x: Tensor, **o: object) -> Tensor:
    wide, rest = heads(x, 19)
    return scale_heads(wide, cut(rest, 3)[0], **o)  # type: ignore[arg-type]


def scaled_by_parameters(x: Tensor, **o: object) -> Tensor:
    wide, rest = heads(x, 16)
    return scale_heads(wide, PER_CHANNEL[:3], add=heads(rest, 16)[0], **o)  # type: ignore[arg-type]


def gated_heads(x: Tensor, **o: object) -> Tensor:
    wide, rest = heads(x, 5)
    y = scale_heads(wide, POSITIVE[:3])
    gate = heads(rest, 5)[0]
    return rms_norm(y, PER_CHANNEL[:5], eps=1e-3, gate=gate, norm_before_gate=True, **o)  # type: ignore[arg-type]


def gated_groups(x: Tensor, **o: object) -> Tensor:
    left, gate, _ = cut(x, 18, 18)
    y = scale_heads(left.unflatten(1, (2, 9)), POSITIVE[:2]).flatten(1)
    return rms_norm(y, PER_CHANNEL[:18], eps=1e-3, groups=2, gate=gate, **o)  # type: ignore[arg-type]


def gated(x: Tensor, **o: object) -> Tensor:
    left, gate, _ = cut(x, 18, 18)
    y = scale_heads(left.unflatten(1, (2, 9)), POSITIVE[:2]).flatten(1)
    return glu(gate, y, activation="silu", num_step_rows=len(y), **o)  # type: ignore[arg-type]


OPERATIONS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "time step": (37, lambda x, **o: time_step(x, PER_CHANNEL[:37], **o)),
    "clamped time step": (16, lambda x, **o: time_step(x, PER_CHANNEL[:16], limit=LIMIT, **o)),
    "log decay": (33, lambda x, **o: log_decay(x, PER_CHANNEL[:33], **o)),
    "sigmoid": (45, lambda x, **o: sigmoid_gate(x, scale=2.0, **o)),
    "heads by rows": (61, scaled_by_rows),
    "heads by parameters": (2 * 48, scaled_by_parameters),
    "unit length": (3 * 21, lambda x, **o: unit_length(x.unflatten(1, (3, 21)), eps=1e-6, **o)),
    "unit rows": (48, lambda x, **o: unit_length(x, eps=1e-6, **o)),
    "gated norm of heads": (2 * 15, gated_heads),
    "gated norm of groups": (37, gated_groups),
    "gated": (37, gated),
}


@pytest.fixture(params=OPERATIONS)
def operation(request: pytest.FixtureRequest) -> tuple[int, Callable[..., Tensor]]:
    return OPERATIONS[request.param]


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def test_as_close_to_fp64_as_torch(operation: tuple[int, Callable[..., Tensor]]) -> None:
    width, op = operation
    x = torch.randn(211, width) * 3
    x[1] *= 30  # where gates saturate
    x[2] = 0
    wanted = op(x.double(), impl="reference")
    assert error(run_rows(op, x), wanted) <= 2 * error(op(x, impl="torch"), wanted) + 1e-8


def test_bits_depend_on_the_row_alone(operation: tuple[int, Callable[..., Tensor]]) -> None:
    width, op = operation
    x = torch.randn(19, width) * 3
    x[1] *= 30
    got = run_rows(op, x)
    assert got.isfinite().all()
    for level in LEVELS:
        for threads in (1, 3):
            assert torch.equal(run_rows(op, x, level=level, num_threads=threads), got), level
    alone = [run_rows(op, row[None]) for row in x]
    assert torch.equal(torch.cat(alone), got)


def test_not_a_number_stays_in_its_row(operation: tuple[int, Callable[..., Tensor]]) -> None:
    width, op = operation
    x = torch.randn(9, width)
    x[4] = torch.nan
    got = run_rows(op, x).flatten(1)
    assert got[4].isnan().all() and got[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


@pytest.mark.parametrize("level", LEVELS)
def test_softplus_is_within_two_units_in_the_last_place(level: str) -> None:
    special = torch.tensor([0.0, -0.0, 1e-30, 39.99, 40.0, 40.01, 88.0, 3e38, -86.9, 1.0, -1.0])
    x = torch.cat([special, torch.linspace(-86, 86, 16 * 999 - len(special))]).view(16, 999)
    got = run_rows(lambda x: time_step(x, ZEROS), x, level=level)
    wanted = time_step(x.double(), ZEROS, impl="reference")
    unit = torch.nextafter(wanted.float(), torch.tensor(torch.inf)).double() - wanted.float().double()
    assert ((got.double() - wanted).abs() <= 2 * unit).all()
    edges = torch.tensor([[-torch.inf, -1e4, torch.inf]])
    assert run_rows(lambda x: time_step(x, ZEROS[:3]), edges, level=level).tolist() == [[0.0, 0.0, torch.inf]]


def test_gates_of_torch_have_the_gradients_of_the_reference(operation: tuple[int, Callable[..., Tensor]]) -> None:
    width, op = operation
    x = torch.randn(5, width, dtype=torch.float64)
    grads = []
    for impl in ("torch", "reference"):
        leaf = x.clone().requires_grad_()
        y = op(leaf, impl=impl)
        grads.append(torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), leaf)[0])
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)
