"""`PageFormat`: how the numbers of a paged state are stored. Codecs with `Can.KV` have one; the name is theirs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from stretto.core.card import CODECS, Can
from stretto.core.errors import UserError

_FLOATS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64"}


class PageFormat(ABC):
    """A token is a payload, one item of `dtype` for every number, and what the numbers of a head share: `sides` arrays
    of fp32, one entry for every token and head (the leading dimensions of a state). Pools allocate both.

    Laws (tests/contracts/test_page_format.py, tests/engine/test_cache.py):
    - tokens are independent: encoding a part is a part of the encoding, so pages are written row by row, provisional
      rows included, and moving, clearing and copying a token moves bytes;
    - `nbytes` is what pools allocate per token;
    - zeros decode to zeros, and a number that is not finite makes NaN of its head: it is not lost.

    tail: tokens at the end of a sequence that are also kept in full precision, because their payload is only known once
    their group is complete (keys that share a scale per channel, over `tail` tokens). It is 0 in all formats so far; a
    format that sets it needs pools that hold such a tail as a state of fixed size, and a commit that encodes groups.
    """

    name: str
    dtype: torch.dtype
    sides: int = 0
    tail: int = 0

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a token of a state of this shape."""
        return torch.Size(shape).numel() * self.dtype.itemsize + self.sides * torch.Size(shape[:-1]).numel() * 4

    @abstractmethod
    def encode(self, rows: Tensor) -> tuple[Tensor, ...]:
        """[T, *shape] of any float dtype -> the payload [T, *shape] and the sides, [T, *shape[:-1]] each."""

    @abstractmethod
    def decode(self, payload: Tensor, *sides: Tensor) -> Tensor:
        """The inverse, for any leading dimensions; in the float dtype that holds it."""


@dataclass(frozen=True, slots=True)
class Plain(PageFormat):
    """Numbers of one float dtype, as they are."""

    dtype: torch.dtype

    @property
    def name(self) -> str:  # type: ignore[override]
        return _FLOATS[self.dtype]

    def encode(self, rows: Tensor) -> tuple[Tensor, ...]:
        return (rows.to(self.dtype),)

    def decode(self, payload: Tensor, *sides: Tensor) -> Tensor:
        return payload


def page_format(name: str) -> PageFormat:
    """The format of a codec with `Can.KV`, by its name. Raises UserError for any other name."""
    card = CODECS.card(name)
    if Can.KV not in card.can:
        known = ", ".join(card.name for card in CODECS.cards(Can.KV))
        raise UserError(f"{name} cannot store keys and values", why="it stores weights only", try_=f"one of {known}")
    found: PageFormat = card.make().pages()
    return found
