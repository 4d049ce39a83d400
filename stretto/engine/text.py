"""`Text`: a request's tokens as text that only grows."""

from collections.abc import Sequence

from stretto.convert.stream import Detokenizer, StopMatcher
from stretto.convert.tokenizer import Tokenizer


class Text:
    """The `TextStream` of one request: incremental detokenization, then stop strings."""

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], *, skip_special: bool = True, continues: bool
    ) -> None:
        """continues: the text goes on from a raw prompt, so its first space belongs to it."""
        self._detokenizer = Detokenizer(tokenizer, skip_special=skip_special, continues=continues)
        self._matcher = StopMatcher(stops)
        self._stopped = False

    def push(self, token: int) -> tuple[str, bool]:
        """Text that is now certain, and whether a stop string was completed."""
        piece, hit = self._matcher.push(self._detokenizer.push([token]))
        self._stopped = hit is not None
        return piece, self._stopped

    def finish(self) -> str:
        """The text that was held back; nothing after a stop string."""
        if self._stopped:
            return ""
        piece, hit = self._matcher.push(self._detokenizer.finish())
        return piece if hit is not None else piece + self._matcher.finish()
