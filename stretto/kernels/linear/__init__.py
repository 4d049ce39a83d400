"""The matrix product of every layer: `Linear`, a list of named row segments behind one call.

A layer that reads its input once multiplies it once: queries, keys and values (or gate and up) are segments of one
matrix. Each segment remembers the `Stored` tensor it was loaded from, so kernels that read quantized weights in place
can derive their layout from the file's own numbers; the torch backend multiplies a dense copy in the compute dtype.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from stretto.core.codec import Stored
from stretto.core.seqs import Seqs
from stretto.kernels.linear import native, onednn
from stretto.kernels.linear.native import NativeWeight
from stretto.kernels.linear.onednn import Prepacked
from stretto.kernels.native.library import Team
from stretto.kernels.pick import Impl, pick

__all__ = ["Linear", "Weight", "lookup", "matmul"]

Weight = Tensor | Prepacked | NativeWeight
"""A matrix [O, D] in a layout that some backend reads."""

_ORDER: tuple[Impl, ...] = ("native", "onednn", "torch", "reference")
_DECODE_BYTES = 8 << 20  # dense fp32 values held while loading: bounds the peak memory of a load


def matmul(
    x_TD: Tensor, weight: Weight, bias: Tensor | None = None, *, num_step_rows: int = 0, impl: Impl = "auto"
) -> Tensor:
    """x [T, D] times weight [O, D] transposed, plus bias [O], in x.dtype with fp32 (or wider) sums.

    The bits of the first `num_step_rows` rows (decode, verification) depend neither on their number nor on other rows.
    Bound: the bytes of `weight` for few rows, 2 T D O FLOP for many.
    """
    y: Tensor = pick("linear", _ORDER, impl, x_TD, weight)(x_TD, weight, bias, num_step_rows=num_step_rows)
    return y


def lookup(tokens_T: Tensor, weight: Weight, *, scale: float = 1.0, impl: Impl = "auto") -> Tensor:
    """scale * weight[tokens], [T, D]: an embedding. While a tape is recorded, the tokens are those of the step."""
    y: Tensor = pick("linear.lookup", _ORDER, impl, tokens_T, weight)(tokens_T, weight, scale=scale)
    return y


class Linear(nn.Module):
    """y = x W^T (+ b), with W [d_out, d_in] made of named row segments.

    segments: name -> rows, in order. `forward` returns [T, sum of rows]; `split` cuts it into the segments.
    adapters: low-rank terms that are added to the product, one for each use of a shared block (models/adapter.py).
    lora: what adds to the product y of x the terms of adapters that are loaded at run time (models/lora.py).
    For inference the matrix may lie in the layout of a backend instead of in `weight`: `prepack` changes a loaded one,
    `hold` and `tile` build one from stored bytes without ever decoding them.
    """

    def __init__(self, d_in: int, segments: Mapping[str, int], bias: bool = False) -> None:
        super().__init__()
        self.d_in, self.segments = d_in, dict(segments)
        self.d_out = sum(self.segments.values())
        self.weight = nn.Parameter(torch.empty(self.d_out, d_in))
        self.bias = nn.Parameter(torch.zeros(self.d_out)) if bias else None
        self.stored: dict[str, Stored] = {}
        self.layout: Prepacked | NativeWeight | None = None
        self.adapters: nn.ModuleList | None = None
        self.lora: Callable[[Tensor, Tensor, Seqs | None], Tensor] | None = None
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=0.02)

    @property
    def num_weights(self) -> int:
        """Numbers of the matrix, in whatever layout it is held."""
        return self.d_out * self.d_in

    @property
    def nbytes(self) -> int:
        """Bytes that one product streams."""
        return self.layout.nbytes if self.layout is not None else self.weight.nbytes

    @property
    def held(self) -> Weight:
        """The matrix, in whatever layout it is held."""
        return self.layout if self.layout is not None else self.weight

    @property
    def is_plain(self) -> bool:
        """Whether `forward` is the product and nothing else."""
        return self.adapters is None and self.lora is None

    def forward(self, x_TD: Tensor, seqs: Seqs | None = None) -> Tensor:
        """[T, d_in] -> [T, d_out]. The step rows of `seqs` get bits that do not depend on the other rows."""
        y_TD = self.product(x_TD, seqs.num_step_rows if seqs is not None else 0)
        y_TD = y_TD if self.lora is None else self.lora(x_TD, y_TD, seqs)
        if self.adapters is None:
            return y_TD
        use = seqs.tag("use") if seqs is not None else None
        assert isinstance(use, int), "adapters belong to the uses of a shared block"
        return self.adapters[use](x_TD, y_TD, seqs)  # type: ignore[no-any-return]

    def product(self, x_TD: Tensor, num_step_rows: int) -> Tensor:
        """[T, d_in] -> [T, d_out], the first `num_step_rows` of them step rows."""
        return matmul(x_TD, self.held, self.bias, num_step_rows=num_step_rows)

    def lookup(self, tokens_T: Tensor, scale: float = 1.0) -> Tensor:
        """scale * W[tokens], [T, d_in]."""
        held = self.layout if isinstance(self.layout, NativeWeight) else self.weight
        return lookup(tokens_T, held, scale=scale)

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
    def load(self, segment: str, stored: Stored) -> None:
        """Fill a segment from a stored tensor of its shape, a few rows at a time."""
        target = self.weight[self.rows(segment)]
        assert stored.shape == tuple(target.shape), f"{segment}: {stored.shape} is not {tuple(target.shape)}"
        step = max(1, _DECODE_BYTES // (4 * self.d_in))
        for first in range(0, len(target), step):
            part = stored.rows(first, min(first + step, len(target)))
            target[first : first + step] = part.decode(target.dtype)
        self.stored[segment] = stored

    def hold(self, segment: str, stored: Stored) -> None:
        """Keep a segment as it is stored, for `tile`."""
        assert stored.shape == (self.segments[segment], self.d_in)
        self.stored[segment] = stored

    def tile(self, team: Team) -> None:
        """Repack the segments that are held for the native kernels; `weight` and the stored bytes are given up."""
        self.layout = native.tile([self.stored[segment] for segment in self.segments], team)
        self.stored = {}
        del self.weight

    def prepack(self, *, keep_plain: bool = False) -> None:
        """Multiply from oneDNN's layout from now on, where there is one for this weight.

        The plain weight is dropped unless `keep_plain`: embeddings are looked up in it.
        """
        if self.layout is None and onednn.cannot_pack(self.weight) is None:
            self.layout = onednn.prepack(self.weight)
            if not keep_plain:
                del self.weight
