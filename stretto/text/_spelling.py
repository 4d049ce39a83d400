"""The bytes that a stored token stands for.

A byte-level token spells each of its bytes as one character (the GPT-2 table); a SentencePiece token spells a space as
U+2581 and a lone byte as `<0xNN>`; a verbatim token is its own text.
"""

import re

from stretto.core.errors import UserError
from stretto.text._vocabulary import Vocabulary

_SPACE = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte: printable Latin-1 stands for itself, the other bytes for U+0100 and up, in order (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_alphabet()


class Spelling:
    """Id -> bytes, remembered. Threads may share it: at worst a token is spelled twice, with the same result."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._known: dict[int, bytes] = {}

    def bytes_of(self, i: int) -> bytes:
        """The bytes one id adds to the text. Raises UserError for an id outside the vocabulary."""
        piece = self._known.get(i)
        if piece is None:
            count = len(self._vocabulary.tokens)
            if not 0 <= i < count:
                raise UserError(f"token id {i} is not in the vocabulary", why=f"it has {count} tokens")
            piece = self._known[i] = self._spell(i)
        return piece

    def _spell(self, i: int) -> bytes:
        token = self._vocabulary.tokens[i]
        if i in self._vocabulary.verbatim_ids:
            return token.encode()
        if self._vocabulary.style == "sentencepiece":
            if i in self._vocabulary.added_ids:  # as the normalizer spells it, where it is looked for after that
                token = self._vocabulary.inner.id_to_token(i) or token
            byte = _BYTE_PIECE.fullmatch(token)
            return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()
        if all(c in _BYTES for c in token):
            return bytes(_BYTES[c] for c in token)
        return token.encode()
