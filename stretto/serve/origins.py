"""How the tokens of an answer came to be, chunk by chunk, for pages that show it.

A chunk is one step of the engine, or several plain ones:

    ids, texts   its tokens, and what each adds to the text (nothing, while a character is incomplete)
    accepted     the first so many had been drafted, at depths 1, 2, ...; the others were sampled
    rejected     the drafted tokens that were wrong, as text; they stood behind the accepted ones
"""

from typing import Any

from stretto.llm.results import Chunk
from stretto.text.stream import Detokenizer
from stretto.text.tokenizer import Tokenizer


class Origins:
    """Of one answer. Law: the texts of all chunks joined are the text of the ids."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._text = Detokenizer(tokenizer, skip_special=skip_special)

    def of(self, chunk: Chunk) -> dict[str, Any]:
        """The fields above; empty for a chunk without tokens."""
        if not chunk.token_ids:
            return {}
        texts = [self._text.push([token]) for token in chunk.token_ids]
        if chunk.result is not None:
            texts[-1] += self._text.finish()
        found: dict[str, Any] = {"ids": chunk.token_ids, "texts": texts, "accepted": chunk.accepted}
        if chunk.rejected_ids:
            found["rejected"] = [self._tokenizer.token_bytes(t).decode(errors="replace") for t in chunk.rejected_ids]
        return found
