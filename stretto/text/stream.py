"""Text as it grows: token ids to text in pieces, stop strings found across the pieces, and `Text`, which is both."""

import codecs
from collections.abc import Iterable, Sequence

from stretto.text.tokenizer import Tokenizer


class Detokenizer:
    """Ids in, text out, piece by piece; nothing that was given out changes later.

    Law: the pieces of `push` and `finish` joined are `tokenizer.decode` of all ids, wherever they are split. A
    character whose bytes are still incomplete is held back. Time is linear in the ids.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special: bool = True,
        shows: Iterable[str] = (),
        continues: bool = False,
    ) -> None:
        """shows: special tokens that are text here all the same. continues: the text goes on from a prompt, so a first
        space is kept where `decode` would drop it."""
        self._tokenizer = tokenizer
        shown = frozenset(shows)
        self._skipped = tokenizer.special_ids if skip_special else frozenset[int]()
        if shown:
            self._skipped = frozenset(i for i in self._skipped if tokenizer.token_text(i) not in shown)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = tokenizer.strip_space and not continues

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` make certain. Raises UserError for an id outside the vocabulary."""
        spell = self._tokenizer.token_bytes
        return self._stripped(self._decoder.decode(b"".join(spell(i) for i in ids if i not in self._skipped)))

    def finish(self) -> str:
        """What is left: an incomplete character becomes U+FFFD."""
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class StopMatcher:
    """Finds the stop string that is complete first (the longest of those that end there) in text that comes in pieces.

    Law: the emitted pieces joined are the text before that stop string, or all of it, wherever the pieces are split;
    text is held back only while it may begin a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self._longest = max(map(len, self._stops), default=0)

    def push(self, text: str) -> tuple[str, str | None]:
        """`text` follows; returns what may be shown and the stop string that was hit. After a hit, nothing follows."""
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, stop = min(found)
            self._held = ""
            return text[:at], stop
        keep = self._prefix_at_end(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def finish(self) -> str:
        """The text that was held back and turned out not to begin a stop string."""
        text, self._held = self._held, ""
        return text

    def _prefix_at_end(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for n in range(min(len(text), self._longest - 1), 0, -1):
            tail = text[len(text) - n :]
            if any(stop.startswith(tail) for stop in self._stops):
                return n
        return 0


class Text:
    """The `TextStream` of one request: incremental detokenization, then stop strings."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        *,
        skip_special: bool = True,
        shows: Iterable[str] = (),
        continues: bool,
    ) -> None:
        """shows: special tokens that are text here all the same. continues: the text goes on from a raw prompt, so its
        first space belongs to it."""
        self._detokenizer = Detokenizer(tokenizer, skip_special=skip_special, shows=shows, continues=continues)
        self._matcher = StopMatcher(stops)
        self.hit: str | None = None

    def push(self, token: int) -> tuple[str, bool]:
        """Text that is now certain, and whether a stop string was completed."""
        piece, self.hit = self._matcher.push(self._detokenizer.push([token]))
        return piece, self.hit is not None

    def finish(self) -> str:
        """The text that was held back; nothing after a stop string."""
        if self.hit is not None:
            return ""
        piece, self.hit = self._matcher.push(self._detokenizer.finish())
        return piece if self.hit is not None else piece + self._matcher.finish()
