"""The matrix product of every layer: `Linear`, a list of named row segments behind one call.

A layer that reads its input once multiplies it once: queries, keys and values (or gate and up) are segments of one
matrix. Each segment remembers the `Packed` tensor it was loaded from, so kernels that read quantized weights in place
can derive their layout from the file's own numbers; the torch backend multiplies a dense copy in the compute dtype.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stretto.core.packed import Packed
from stretto.core.seqs import Seqs
from stretto.kernels.linear.onednn import Prepacked, cannot_pack, prepack
from stretto.kernels.pick import Impl, pick

__all__ = ["Linear", "matmul"]

_DECODE_BYTES = 8 << 20  # dense fp32 values held while loading: bounds the peak memory of a load


def matmul(
    x_TD: Tensor, weight: Tensor | Prepacked, bias: Tensor | None = None, *, num_step_rows: int = 0, impl: Impl = "auto"
) -> Tensor:
    """x [T, D] times weight [O, D] transposed, plus bias [O], in x.dtype with fp32 (or wider) sums.

    The bits of the first `num_step_rows` rows (decode, verification) depend neither on their number nor on other rows.
    Bound: the bytes of `weight` for few rows, 2 T D O FLOP for many.
    """
    y: Tensor = pick("linear", ("onednn", "torch", "reference"), impl, x_TD, weight)(
        x_TD, weight, bias, num_step_rows=num_step_rows
    )
    return y


class Linear(nn.Module):
    """y = x W^T (+ b), with W [d_out, d_in] made of named row segments.

    segments: name -> rows, in order. `forward` returns [T, sum of rows]; `split` cuts it into the segments.
    `prepack` turns a loaded matrix into the layout of the fastest backend, for inference only.
    """

    def __init__(self, d_in: int, segments: Mapping[str, int], bias: bool = False) -> None:
        super().__init__()
        self.d_in, self.segments = d_in, dict(segments)
        self.d_out = sum(self.segments.values())
        self.weight = nn.Parameter(torch.empty(self.d_out, d_in))
        self.bias = nn.Parameter(torch.zeros(self.d_out)) if bias else None
        self.packed: dict[str, Packed] = {}
        self.prepacked: Prepacked | None = None
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=0.02)

    @property
    def num_weights(self) -> int:
        """Numbers of the matrix, in whatever layout it is held."""
        return self.d_out * self.d_in

    def forward(self, x_TD: Tensor, seqs: Seqs | None = None) -> Tensor:
        """[T, d_in] -> [T, d_out]. The step rows of `seqs` get bits that do not depend on the other rows."""
        return self.product(x_TD, seqs.num_step_rows if seqs is not None else 0)

    def product(self, x_TD: Tensor, num_step_rows: int) -> Tensor:
        """[T, d_in] -> [T, d_out], the first `num_step_rows` of them step rows."""
        return matmul(x_TD, self.prepacked or self.weight, self.bias, num_step_rows=num_step_rows)

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """[T, d_out] -> one view per segment, in order."""
        return y.split_with_sizes(list(self.segments.values()), dim=-1)

    def rows(self, segment: str) -> slice:
        """Where a segment lies in `weight` and `bias`."""
        first = 0
        for name, count in self.segments.items():
            if name == segment:
                return slice(first, first + count)
            first += count
        raise KeyError(segment)

    @torch.no_grad()
    def load(self, segment: str, packed: Packed) -> None:
        """Fill a segment from a stored tensor of its shape, a few rows at a time."""
        target = self.weight[self.rows(segment)]
        assert packed.shape == tuple(target.shape), f"{segment}: {packed.shape} is not {tuple(target.shape)}"
        step = max(1, _DECODE_BYTES // (4 * self.d_in))
        for first in range(0, len(target), step):
            part = packed.rows(first, min(first + step, len(target)))
            target[first : first + step] = part.decode(target.dtype)
        self.packed[segment] = packed

    def prepack(self, *, keep_plain: bool = False) -> None:
        """Multiply from the layout of the fastest backend from now on, where there is one for this weight.

        The plain weight is dropped unless `keep_plain`: embeddings are looked up in it.
        """
        if self.prepacked is None and cannot_pack(self.weight) is None:
            self.prepacked = prepack(self.weight)
            if not keep_plain:
                del self.weight
