"""The specification of `add_lora`: row by row, in fp64, rounded once."""

from typing import Any

from torch import Tensor, stack

from stretto.core.seqs import LORA, Seqs


def why_not(x: Tensor, site: Any) -> str | None:
    """It always can."""
    return None


def add_lora(x_TD: Tensor, y_TD: Tensor, site: Any, seqs: Seqs) -> Tensor:
    """See `stretto.kernels.lora.add_lora`."""
    numbers = seqs.tags.get(LORA, 0)
    rows = []
    for r in range(len(x_TD)):
        number = numbers if isinstance(numbers, int) else numbers[r]
        first, y_O = 0, y_TD[r].double().clone()
        for i, width in enumerate(site.widths):
            found = site.table.find(number, site.first + i)
            if found is not None:
                t_K = found.a.double() @ x_TD[r].double()
                y_O[first : first + width] += found.scale * (found.b.double().T @ t_K)
            first += width
        rows.append(y_O.to(y_TD.dtype))
    return stack(rows) if rows else y_TD
