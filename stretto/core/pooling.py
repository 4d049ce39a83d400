"""How the hidden states of a text become one vector: what the files of a model say of it (`convert/pooling.py`)."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["last", "mean", "cls"]
"""The hidden state of the last token, the mean of all, the hidden state of the first token."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """refused: what the files ask for and nothing here computes; None if `kind` is all that they ask for."""

    kind: Kind = "last"
    refused: str | None = None
