"""Low-rank adapters of a running model: the operation, and the table that it reads."""

from collections.abc import Sequence

import pytest
import torch
from native import LEVELS, int32, team
from torch import Tensor

from stretto.core.seqs import LORA, Seqs
from stretto.kernels.lora import Factors, LoraSite, LoraTable, Place, add_lora
from stretto.kernels.native.buffers import ALL_ROWS
from stretto.kernels.native.tape import Tape

WIDTHS, D_IN = (45, 7, 1030), 53
PLACES = {"q": Place(0, 45, D_IN), "k": Place(45, 7, D_IN), "v": Place(52, 1030, D_IN)}
NUMBERS = (1, 0, 2, 2, 0, 3, 1, 0, 0, 2, 1)


def make(rank: int, width: int, scale: float) -> Factors:
    return Factors(torch.randn(rank, D_IN), torch.randn(rank, width), scale)


def filled(table: LoraTable) -> LoraSite:
    """Three adapters: of all segments, of some, of ranks that are no multiples of anything."""
    table.write(1, {"q": make(5, 45, 0.5), "k": make(40, 7, 1.5), "v": make(16, 1030, 2.0)})
    table.write(2, {"k": make(1, 7, -3.0)})
    table.write(3, {"q": make(17, 45, 0.1), "v": make(4, 1030, 1.0)})
    return LoraSite(table, 0, D_IN, WIDTHS)


def in_float64(x: Tensor, y: Tensor, table: LoraTable, numbers: Sequence[int]) -> Tensor:
    """The formula, number by number, with whole matrices."""
    out = y.double().clone()
    for r, number in enumerate(numbers):
        for segment, place in enumerate(PLACES.values()):
            found = table.find(number, segment)
            if found is not None:
                delta = found.scale * found.b.double().T @ found.a.double()
                out[r, place.first : place.first + place.d_out] += delta @ x[r].double()
    return out


def run_native(
    x: Tensor, y: Tensor, site: LoraSite, numbers: Sequence[int], level: str = LEVELS[0], threads: int = 2
) -> Tensor:
    """Recorded over buffers whose unused numbers are NaN."""
    tape = Tape(team(level, threads), max_rows=len(x) + 3, max_out=1, context=8)
    inputs = tape.empty(ALL_ROWS, x.shape[1]), tape.empty(ALL_ROWS, y.shape[1])
    with tape.recording():
        out = add_lora(*inputs, site, Seqs.of([len(x)]))
    for memory in tape.buffers.memory:
        memory[:] = b"\xff" * len(memory)
    for buffer, values in zip(inputs, (x, y), strict=True):
        buffer[: len(x)] = values
    rows = int32(numbers)
    tape.step.num_rows = len(x)
    tape.step.loras = None if not any(numbers) else torch.frombuffer(rows, dtype=torch.int32).data_ptr()
    tape.run()
    return out[: len(x)].clone()


@pytest.mark.parametrize("backend", ["reference", "torch", "native"])
def test_the_terms_are_those_of_the_formula(backend: str) -> None:
    site = filled(LoraTable(PLACES, 3, 40, team().library))
    x, y = torch.randn(len(NUMBERS), D_IN), torch.randn(len(NUMBERS), sum(WIDTHS))
    seqs = Seqs.of([4, 7], num_step=1, tags={LORA: NUMBERS})
    got = run_native(x, y, site, NUMBERS) if backend == "native" else add_lora(x, y, site, seqs, impl=backend)  # type: ignore[arg-type]
    torch.testing.assert_close(got.double(), in_float64(x, y, site.table, NUMBERS), rtol=1e-5, atol=2e-4)
    without = [r for r, number in enumerate(NUMBERS) if not number]
    assert torch.equal(got[without], y[without])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", [1, 3])
def test_native_rows_have_the_bits_that_they_have_alone(level: str, threads: int) -> None:
    site = filled(LoraTable(PLACES, 3, 48, team().library))
    x, y = torch.randn(len(NUMBERS), D_IN), torch.randn(len(NUMBERS), sum(WIDTHS))
    together = run_native(x, y, site, NUMBERS, level, threads)
    for r, number in enumerate(NUMBERS):
        assert torch.equal(run_native(x[r : r + 1], y[r : r + 1], site, [number])[0], together[r])


def test_step_rows_through_torch_have_the_bits_that_they_have_alone() -> None:
    site = filled(LoraTable(PLACES, 3, 40))
    x, y = torch.randn(len(NUMBERS), D_IN), torch.randn(len(NUMBERS), sum(WIDTHS))
    ones = [1] * len(NUMBERS)
    together = add_lora(x, y, site, Seqs.of(ones, num_step=len(ones), tags={LORA: NUMBERS}), impl="torch")
    for r, number in enumerate(NUMBERS):
        alone = Seqs.of([1], num_step=1, tags={LORA: [number]})
        assert torch.equal(add_lora(x[r : r + 1], y[r : r + 1], site, alone, impl="torch")[0], together[r])


def test_writing_the_table_is_all_that_loading_takes() -> None:
    """One recording; what it computes changes with the table."""
    table = LoraTable(PLACES, 2, 16, team().library)
    site = LoraSite(table, 0, D_IN, WIDTHS)
    x, y = torch.randn(3, D_IN), torch.randn(3, sum(WIDTHS))
    numbers = (1, 2, 0)
    assert torch.equal(run_native(x, y, site, numbers), y)
    table.write(2, {"q": make(3, 45, 1.0)})
    table.write(2, {"v": make(8, 1030, 1.0)})
    got = run_native(x, y, site, numbers)
    torch.testing.assert_close(got.double(), in_float64(x, y, table, numbers), rtol=1e-5, atol=2e-4)
    assert torch.equal(got[1, :52], y[1, :52]), "the adapter that stood there before adds nothing"
    table.clear(2)
    assert torch.equal(run_native(x, y, site, numbers), y) and table.nbytes == 0
