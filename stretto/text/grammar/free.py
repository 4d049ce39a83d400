"""The part of an output before a grammar begins: free, but it must come to the text that the grammar begins after."""

from collections.abc import Callable, Sequence

from stretto.text.tokenizer import Tokenizer


class Free:
    """A search for `after` in the bytes of tokens. Its state is how many bytes of `after` stand at the end of the text.

    Once `after` is there the state is `done`. White space in the same token behind it is dropped; a token with other
    text behind it is forbidden, since the grammar would have to begin inside of it. End tokens are forbidden as well.
    budget: after so many tokens, `after` is written. split: canonical ids of a text.
    """

    def __init__(
        self, tokenizer: Tokenizer, split: Callable[[str], Sequence[int]], after: str, budget: int | None
    ) -> None:
        self._tokenizer, self._split, self._budget = tokenizer, split, budget
        self._after = after.encode()
        self.done = len(self._after)
        self._back = _failures(self._after)
        self._masks: dict[int, bytes] = {}
        self._crossing: list[int] | None = None

    def state_after(self, state: int, token: int) -> int | None:
        """The state behind a token; None if it is forbidden there."""
        if token in self._tokenizer.eos_ids or not 0 <= token < self._tokenizer.vocab_size:
            return None
        return self._read(state, self._tokenizer.token_bytes(token))

    def mask(self, state: int, num_tokens: int) -> bytes:
        """What may follow `num_tokens` tokens."""
        if self._budget is not None and num_tokens >= self._budget:
            return _bits(self._closing(state)[:1], self._tokenizer.vocab_size)
        if state not in self._masks:
            spell = self._tokenizer.token_bytes
            crossing = (t for t in self._all_crossing() if self._read(state, spell(t)) is None)
            self._masks[state] = _without((*self._tokenizer.eos_ids, *crossing), self._tokenizer.vocab_size)
        return self._masks[state]

    def forced(self, state: int, num_tokens: int) -> list[int]:
        """Tokens that must follow."""
        return self._closing(state) if self._budget is not None and num_tokens >= self._budget else []

    def _closing(self, state: int) -> list[int]:
        """The rest of `after`, as the tokenizer splits it; whole where its state lies inside of a character."""
        rest = self._after[state:].decode(errors="ignore")
        return list(self._split(rest if rest.encode() == self._after[state:] else self._after.decode()))

    def _read(self, state: int, piece: bytes) -> int | None:
        for at, byte in enumerate(piece, start=1):
            while state and self._after[state] != byte:
                state = self._back[state]
            state += self._after[state] == byte
            if state == self.done:
                return None if piece[at:].strip() else state
        return state

    def _all_crossing(self) -> list[int]:
        """Tokens with other text behind the last byte of `after`: those that any state may have to forbid."""
        if self._crossing is None:
            last, spell = self._after[-1:], self._tokenizer.token_bytes
            ids = range(self._tokenizer.vocab_size)
            self._crossing = [t for t in ids if spell(t).partition(last)[2].strip()]
        return self._crossing


def _failures(pattern: bytes) -> list[int]:
    """Per length n of what stands at the end, the longest shorter beginning of `pattern` that stands there, too."""
    found, k = [0, 0], 0
    for byte in pattern[1:]:
        while k and pattern[k] != byte:
            k = found[k]
        k += pattern[k] == byte
        found.append(k)
    return found


def _bits(ids: Sequence[int], size: int) -> bytes:
    bits = bytearray(-(-size // 8))
    for t in ids:
        bits[t // 8] |= 1 << t % 8
    return bytes(bits)


def _without(ids: Sequence[int], size: int) -> bytes:
    bits = bytearray(b"\xff" * (size // 8) + bytes([(1 << size % 8) - 1] if size % 8 else []))
    for t in ids:
        if 0 <= t < size:
            bits[t // 8] &= ~(1 << t % 8)
    return bytes(bits)
