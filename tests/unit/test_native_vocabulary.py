"""Plain torch on the tape: values against torch in float64, bits independent of the level, constants, refusals."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from native import LEVELS, run_rows, team
from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.kernels.native.buffers import ALL_ROWS
from stretto.kernels.native.guard import NotRecordable, StepSeqs
from stretto.kernels.native.tape import Tape


def vector(x: Tensor) -> Tensor:
    """A constant for each number of a row."""
    return torch.arange(1.0, x.shape[-1] + 1.0, dtype=x.dtype) / x.shape[-1]


def heads(x: Tensor) -> Tensor:
    return x[:, :18].view(-1, 3, 6)


SIGNED: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "squared relu": lambda x: torch.relu(x).square(),
    "clamp": lambda x: x.clamp(min=-1.5, max=2.0),
    "number first": lambda x: 3.0 - x,
    "numbers": lambda x: (x * 2.5 + 1.0) / 4.0 - 0.5,
    "constant": lambda x: x * torch.arange(1.0, x.shape[-1] + 1.0, dtype=x.dtype),
    "constant first": lambda x: torch.arange(1.0, x.shape[-1] + 1.0, dtype=x.dtype) - x,
    "constant made of constants": lambda x: x + (torch.ones(x.shape[-1], dtype=x.dtype) * 2).exp().log(),
    "itself": lambda x: x * x + x,
    "maximum": lambda x: torch.maximum(x, 0.5 * x + 0.1),
    "minimum": lambda x: torch.minimum(x, 0.5 * x + 0.1),
    "cat": lambda x: torch.cat([x, -x, x[:, :3]], -1),
    "cat with a constant": lambda x: torch.cat([torch.ones(1, 2, dtype=x.dtype).expand(len(x), 2), x], -1),
    "pad": lambda x: F.pad(x, (2, 3), value=0.5),
    "split": lambda x: torch.mul(*x[:, :18].split([9, 9], -1)),
    "heads": lambda x: (x[:, :18].view(-1, 3, 6) * torch.tensor([1.0, -2.0, 3.0], dtype=x.dtype)[:, None]).flatten(1),
    "length of rows": lambda x: F.normalize(x, dim=-1),
    "length of heads": lambda x: F.normalize(x[:, 1:19].view(-1, 3, 6), dim=-1).flatten(1),
    "lengths": lambda x: torch.linalg.vector_norm(x[:, :18].view(-1, 3, 6), dim=-1),
    "layer norm": lambda x: F.layer_norm(x, x.shape[1:], vector(x), -vector(x), eps=1e-3),
    "layer norm of heads": lambda x: F.layer_norm(x[:, :18].view(-1, 3, 6), (6,)).flatten(1),
    "rms norm": lambda x: F.rms_norm(x, x.shape[1:], vector(x)),
    "heads by rows": lambda x: (x[:, :18].reshape(-1, 3, 6) * x[:, 18:21].unflatten(1, (3, 1))).flatten(1),
}
POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.log,
    "log1p": torch.log1p,
    "log1p of little": lambda x: torch.log1p(x * 1e-6) * 1e6,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "quotient": lambda x: x / (x + 1.0),
}


@pytest.mark.parametrize("name", [*SIGNED, *POSITIVE])
def test_values_and_bits(name: str) -> None:
    x = torch.randn(9, 21) * 5 if name in SIGNED else torch.rand(9, 21) * 8 + 1e-3
    function = SIGNED.get(name) or POSITIVE[name]
    found = {level: run_rows(function, x, level=level) for level in LEVELS}
    want = function(x.double())
    torch.testing.assert_close(found[LEVELS[0]].double(), want, rtol=3e-6, atol=3e-7)
    for level in LEVELS[1:]:
        assert torch.equal(found[level], found[LEVELS[0]]), level


PRODUCTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "rows": (lambda x, w: x @ w, (21, 19)),
    "heads": (lambda x, w: torch.einsum("thk,hkv->thv", heads(x), w), (3, 6, 35)),
    "heads, transposed": (lambda x, w: torch.einsum("hvk,thk->thv", w, heads(x)), (3, 7, 6)),
    "heads by one matrix": (lambda x, w: heads(x) @ w, (6, 5)),
    "a batch": (lambda x, w: (heads(x).transpose(0, 1) @ w).transpose(0, 1), (3, 6, 16)),
    "heads of single rows": (lambda x, w: (heads(x)[:, :, None] @ w)[:, :, 0], (3, 6, 4)),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("num_rows", [1, 9])
def test_products_by_constants(name: str, num_rows: int) -> None:
    """Within the rounding of a sum of 21 products, which every row has to itself."""
    function, shape = PRODUCTS[name]
    x, w = torch.randn(num_rows, 21), torch.randn(shape)
    found = [run_rows(lambda x: function(x, w).flatten(1), x, level=level) for level in LEVELS]
    error = (found[0].double() - function(x.double(), w.double()).flatten(1)).abs()
    assert (error <= 21 * 2**-24 * function(x.abs().double(), w.abs().double()).flatten(1)).all()
    for other in found[1:]:
        assert torch.equal(other, found[0])
    alone = [run_rows(lambda x: function(x, w).flatten(1), row[None]) for row in x]
    assert torch.equal(torch.cat(alone), found[0])


EDGES = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, 1e-30, 88.0, -88.0, 200.0, -200.0])


@pytest.mark.parametrize("name", ["abs", "sigmoid", "tanh", "softplus", "elu", "relu"])
def test_edges_of_functions_of_any_number(name: str) -> None:
    x = EDGES.repeat(2, 1)
    want = SIGNED[name](x)
    torch.testing.assert_close(run_rows(SIGNED[name], x), want, rtol=3e-6, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("name", ["log", "log1p", "sqrt", "reciprocal"])
def test_edges_of_functions_of_positive_numbers(name: str) -> None:
    x = torch.tensor([0.0, torch.inf, torch.nan, 1e-40, 1e-30, 1e30, 1.0, -1.0]).repeat(2, 1)
    torch.testing.assert_close(run_rows(POSITIVE[name], x), POSITIVE[name](x), rtol=3e-6, atol=1e-30, equal_nan=True)


def tape(**options: object) -> Tape:
    return Tape(team(), max_rows=8, max_out=8, context=8, **options)  # type: ignore[arg-type]


REFUSED: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "sums of rows": (lambda x: x.sum(-1), "sum"),
    "products of rows": (lambda x: x @ x.T, "multiplies rows by rows"),
    "a matrix for each row": (lambda x: x[:, None] @ torch.ones(8, 4, 4), "along rows"),
    "a matrix for each of as many heads": (lambda x: x[:, None].expand(-1, 8, 4) @ torch.ones(8, 4, 4), "along rows"),
    "one matrix, repeated": (lambda x: x.view(-1, 2, 2).transpose(0, 1) @ torch.ones(1, 2, 3), "by .1, 2, 3."),
    "a matrix of another depth": (lambda x: x @ torch.ones(3, 4), "by .3, 4."),
    "sums over heads": (lambda x: torch.einsum("thk,hkv->tv", x.view(-1, 2, 2), torch.ones(2, 2, 3)), "computes thk"),
    "another norm": (lambda x: F.normalize(x, p=1.0, dim=-1), "another norm"),
    "a norm of columns": (lambda x: F.normalize(x, dim=0), "another norm"),
    "a layer norm of heads together": (lambda x: F.layer_norm(x.view(-1, 2, 2), (2, 2)), "several axes"),
    "rows of rows": (lambda x: x[torch.tensor([1, 0])], "index"),
    "a constant for each row": (lambda x: x + torch.ones(8, 4).cumsum(0), "a constant for each row"),
    "noise": (lambda x: x + torch.randn(4), "draws numbers"),
    "in place": (lambda x: x.mul_(2), "mul_"),
    "cat of rows": (lambda x: torch.cat([x, x]), "an axis that is not the last"),
    "another type": (lambda x: x.double(), "type of rows"),
    "a slope": (lambda x: F.softplus(x, beta=2.0), "a slope of its own"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_recorded_says_so(case: str) -> None:
    function, reason = REFUSED[case]
    recorded = tape()
    x = recorded.empty(ALL_ROWS, 4)
    with recorded.recording(), pytest.raises(NotRecordable, match=reason):
        function(x)


def test_what_changes_from_step_to_step_is_no_constant() -> None:
    pages = torch.zeros(2, 4)
    recorded = tape(live=[pages])
    with recorded.recording():
        with pytest.raises(NotRecordable, match="what is cached"):
            pages.exp()
        with pytest.raises(NotRecordable, match="writes by"):
            EDGES.zero_()
    seqs = StepSeqs((8,), (0,), (0,), (None,))
    for read in (lambda: seqs.positions, lambda: seqs.ancestors, lambda: seqs.taps(3)):
        with pytest.raises(NotRecordable, match=r"which rows are whose|positions of rows"):
            read()
    assert seqs.num_step_rows == 0 and not seqs.chunk_part.has_drafts and Seqs.of([8]).positions.tolist()[-1] == 7


COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x[:, 2:9].contiguous() * 1.0,
    "reshape": lambda x: x[:, 1:19].unflatten(1, (3, 6))[:, :, :4].reshape(-1, 12),
    "flatten": lambda x: x[:, 1:19].unflatten(1, (3, 6))[:, :2, 1:].flatten(1),
}


@pytest.mark.parametrize("name", COPIES)
def test_views_that_have_to_copy_do_so_in_every_run(name: str) -> None:
    x = torch.randn(9, 21)
    assert torch.equal(run_rows(COPIES[name], x), COPIES[name](x))
