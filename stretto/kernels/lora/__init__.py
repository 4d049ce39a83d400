"""Low-rank adapters of a running model: every row has one adapter or none.

    y_r += scale * B (A x_r)        A, B, scale: of the adapter of row r; LoRA, arXiv 2106.09685

The adapters stand in a `LoraTable`, which is written between two steps; the rows of a step say by the tag `LORA` which
adapter is theirs. A matrix has a `LoraSite`: where its segments stand in the table.
"""

from dataclasses import dataclass

from torch import Tensor

from stretto.core.seqs import Seqs
from stretto.kernels.lora.table import Factors, LoraTable, Place
from stretto.kernels.pick import Impl, pick

__all__ = ["Factors", "LoraSite", "LoraTable", "Place", "add_lora"]

_ORDER: tuple[Impl, ...] = ("native", "torch", "reference")


@dataclass(frozen=True, slots=True)
class LoraSite:
    """A matrix that adapters may change. first: number of its first segment in the table; widths: rows of each."""

    table: LoraTable
    first: int
    d_in: int
    widths: tuple[int, ...]

    def __call__(self, x_TD: Tensor, y_TD: Tensor, seqs: Seqs | None) -> Tensor:
        """The product y of the matrix with x, with what the adapters of the rows add."""
        assert seqs is not None, "the rows say which adapter is theirs"
        return add_lora(x_TD, y_TD, self, seqs)


def add_lora(x_TD: Tensor, y_TD: Tensor, site: LoraSite, seqs: Seqs, *, impl: Impl = "auto") -> Tensor:
    """y [T, O] plus, for every row that has an adapter, its term of x [T, D]; sums in fp32 or wider.

    A row without an adapter keeps its bits, and no row's bits depend on the others (through torch: of step rows). y is
    written to where a tape is recorded: nobody else may have read it. Bound: the bytes of the adapters that are used,
    for few rows; 2 T r (D + O) FLOP for many.
    """
    y: Tensor = pick("lora.add_lora", _ORDER, impl, x_TD, site)(x_TD, y_TD, site, seqs)
    return y
