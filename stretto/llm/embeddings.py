"""`Embeddings`: texts as vectors of unit length, computed by requests that end when their prompt is read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stretto.core.errors import UserError
from stretto.core.pooling import Pooling
from stretto.core.sampling import Sampling
from stretto.llm.results import Result, Usage
from stretto.llm.submission import Prompt, Submission
from stretto.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from numpy import ndarray


@dataclass(frozen=True, slots=True)
class Embedder:
    """How one model embeds. d_model: numbers of a vector."""

    tokenizer: Tokenizer
    pooling: Pooling
    d_model: int

    def submissions(
        self,
        texts: Sequence[Prompt],
        dimensions: int | None = None,
        *,
        tenant: str = "",
        space: str = "",
        lora: str | None = None,
    ) -> list[Submission]:
        """A request for each text. tenant, space, lora: as of `Submission`. Raises UserError for more `dimensions` than
        there are, and if the model's files ask for what is not computed here."""
        if dimensions is not None and not 1 <= dimensions <= self.d_model:
            raise UserError(f"dimensions is {dimensions:,}", why=f"the vectors of this model have {self.d_model:,}")
        if self.pooling.refused is not None:
            raise UserError("this model's embeddings cannot be computed", why=self.pooling.refused)
        nothing, kind = Sampling(), self.pooling.kind
        return [
            Submission(ids=self.encode(text), sampling=nothing, tenant=tenant, space=space, pooling=kind, lora=lora)
            for text in texts
        ]

    def encode(self, text: Prompt) -> list[int]:
        """What is read of a text: all that its tokenizer puts around it, an EOS behind it too, if the file says so. Ids
        are taken as they are."""
        return self.tokenizer.encode(text, is_whole=True) if isinstance(text, str) else list(text)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """vectors: one per text, in order, each of unit length. usage: of all texts together."""

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage

    @staticmethod
    def of(results: Sequence[Result], dimensions: int | None = None) -> "Embeddings":
        """What requests of `Embedder.submissions` resulted in. dimensions: see `shortened`."""
        counts = [(r.usage.prompt_tokens, r.usage.cached_tokens) for r in results]
        usage = Usage(sum(n for n, _ in counts), 0, sum(n for _, n in counts))
        return Embeddings(tuple(shortened(result.embedding or (), dimensions) for result in results), usage)

    def numpy(self) -> "ndarray":
        """[texts, dimensions] fp32."""
        import numpy as np

        return np.array(self.vectors, dtype=np.float32)


def shortened(vector: tuple[float, ...], dimensions: int | None) -> tuple[float, ...]:
    """Its first numbers, of unit length again; None = as it is. Of models that were trained for it, the beginning of a
    vector is a smaller vector."""
    if dimensions is None or dimensions == len(vector):
        return vector
    first = vector[:dimensions]
    length = math.sqrt(math.fsum(x * x for x in first))
    return tuple(x / length for x in first) if length else first
