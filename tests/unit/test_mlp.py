"""Gated MLPs: fp64, and the bits of the operations that a fused one is made of."""

from collections.abc import Sequence

import pytest
import torch
from native import LAYOUTS, LEVELS, PLAIN, run_rows, stored, team
from torch import Tensor

from stretto.core.codec import Stored
from stretto.core.errors import UserError
from stretto.kernels.linear import matmul
from stretto.kernels.linear.native import NativeWeight, tile
from stretto.kernels.mlp import gated_mlp
from stretto.kernels.rowwise import Activation, glu

QUANTIZED = sorted(set(LAYOUTS) - set(PLAIN))
ACTIVATIONS: list[Activation] = ["silu", "gelu_tanh"]
Biases = tuple[Tensor | None, Tensor | None]


def mlp(weights: Sequence[NativeWeight], biases: Biases, activation: Activation, **where: object):
    def run(x: Tensor) -> Tensor:
        how = {"gate_up_bias": biases[0], "down_bias": biases[1], "activation": activation}
        return gated_mlp(x, *weights, **how, impl="native")  # type: ignore[arg-type]

    return lambda x: run_rows(run, x, **where)  # type: ignore[arg-type]


def one_by_one(weights: Sequence[NativeWeight], biases: Biases, activation: Activation, **where: object):
    def run(x: Tensor) -> Tensor:
        gate, up = matmul(x, weights[0], biases[0], impl="native").chunk(2, dim=1)
        return matmul(glu(gate, up, activation=activation, impl="native"), weights[1], biases[1], impl="native")

    return lambda x: run_rows(run, x, **where)  # type: ignore[arg-type]


def matrices(codec: str, d: int, hidden: int) -> tuple[Stored, Stored, Stored]:
    return stored(codec, hidden, d), stored(codec, hidden, d), stored(codec, d, hidden)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_equals_fp64(impl: str, activation: Activation) -> None:
    x, gate_up, down = torch.randn(7, 24), torch.randn(2 * 40, 24) / 5, torch.randn(24, 40) / 6
    biases = torch.randn(80), torch.randn(24)
    gate, up = (x.double() @ gate_up.double().T + biases[0]).chunk(2, dim=1)
    act = torch.nn.functional.silu(gate) if activation == "silu" else torch.nn.functional.gelu(gate, approximate="tanh")
    want = (act * up) @ down.double().T + biases[1]
    how = {"gate_up_bias": biases[0], "down_bias": biases[1], "activation": activation, "impl": impl}
    for steps in (0, 3):
        torch.testing.assert_close(gated_mlp(x, gate_up, down, num_step_rows=steps, **how), want.float())  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("codec", QUANTIZED)
def test_a_fused_one_has_the_bits_of_its_operations(codec: str, activation: Activation) -> None:
    gate, up, down = matrices(codec, 256, 512)
    weights = tile([gate, up], team()), tile([down], team())
    for rows, biases in ((1, (None, None)), (3, (torch.randn(1024), torch.randn(256))), (83, (None, torch.randn(256)))):
        x = torch.randn(rows, 256)
        for coarse_from in (None, 0, rows // 2):
            want = one_by_one(weights, biases, activation, coarse_from=coarse_from)(x)
            assert torch.equal(mlp(weights, biases, activation, coarse_from=coarse_from)(x), want), (rows, coarse_from)
    for level in LEVELS:
        got = mlp(weights, biases, activation, coarse_from=rows // 2, level=level, num_threads=3)(x)
        assert torch.equal(got, want), level


@pytest.mark.parametrize("codec", ["q4_1", "int8"])
def test_a_fused_one_is_near_fp64(codec: str) -> None:
    gate, up, down = matrices(codec, 512, 1536)
    dense = [packed.decode(torch.float32) for packed in (gate, up, down)]
    x = torch.randn(33, 512) / 8
    weights = tile([gate, up], team()), tile([down], team())
    got = mlp(weights, (None, None), "silu")(x)
    want = gated_mlp(x, torch.cat(dense[:2]), dense[2], activation="silu", impl="reference").double()
    assert (got - want).norm() / want.norm() < 1e-4


def test_what_is_not_a_number_is_not_hidden() -> None:
    gate, up, down = matrices("q4_1", 64, 96)
    x = torch.randn(20, 64)
    x[3, 5], x[17, 60] = torch.nan, torch.inf
    y = mlp((tile([gate, up], team()), tile([down], team())), (None, None), "silu")(x)
    assert torch.equal(y.isfinite().all(1), x.isfinite().all(1)) and not y[3].isfinite().any()


@pytest.mark.parametrize(
    ("codecs", "hidden", "why"),
    [
        (("q4_1", "q8_0", "q4_1"), 64, "two codecs"),
        (("q4_1", "q4_1", "bf16"), 64, "not quantized"),
        (("f32", "f32", "f32"), 64, "not quantized"),
    ],
)
def test_what_cannot_be_fused_runs_one_by_one(codecs: Sequence[str], hidden: int, why: str) -> None:
    gate, up, down = (
        stored(c, n, m) for c, (n, m) in zip(codecs, [(hidden, 64), (hidden, 64), (64, hidden)], strict=True)
    )
    weights, x = (tile([gate, up], team()), tile([down], team())), torch.randn(5, 64)
    with pytest.raises(UserError, match=why):
        mlp(weights, (None, None), "silu")(x)
    got = run_rows(lambda x: gated_mlp(x, *weights, activation="silu"), x)
    assert torch.equal(got, one_by_one(weights, (None, None), "silu")(x))
