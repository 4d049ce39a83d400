"""`Matcher`: a grammar at work on one request, over drafts and back."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from stretto.core.errors import RunError, UserError
from stretto.core.tree import Tree
from stretto.text.grammar import limits
from stretto.text.grammar.free import Free

if TYPE_CHECKING:
    from llguidance import LLMatcher

_INSIDE, _END = -1, -2  # marks of tokens: read by the grammar; an end token. From 0 on: states of the free part


class Matcher:
    """The `TokenMatcher` over llguidance's. start: one of those at its beginning. free: what comes before the grammar.

    llguidance 1.9.1 does not count an end token that follows a text that is over: rolling back one token takes the one
    before it along. So end tokens stay here. What it cannot do it never recovers from, so a matcher that failed on the
    path of a draft is replaced by one that has read what was accepted.
    """

    def __init__(self, start: "Callable[[], LLMatcher]", free: Free | None, end_ids: frozenset[int]) -> None:
        self._start, self._free, self._end_ids = start, free, end_ids
        self._inner = start()
        self._tokens: list[int] = []
        self._marks: list[int] = []

    @property
    def is_over(self) -> bool:
        if self._marks and self._marks[-1] == _END:
            return True
        return self._state is None and self._inner.is_stopped() and not self._inner.is_error()

    @property
    def _state(self) -> int | None:
        """Of the free part; None in the grammar."""
        if self._free is None:
            return None
        if not self._marks:
            return 0
        last = self._marks[-1]
        return last if 0 <= last < self._free.done else None

    def allowed(self) -> bytes:
        state = self._state
        if state is not None:
            assert self._free is not None
            return self._free.mask(state, len(self._marks))
        if self._marks and self._marks[-1] == _END:
            return b""
        started = time.thread_time()
        mask = self._inner.compute_bitmask()
        if self._inner.is_error():
            raise self._failure()
        if time.thread_time() - started > limits.MASK_SECONDS:  # all other requests have waited for it
            raise _too_complex(f"what may follow took more than {limits.MASK_SECONDS:g} s to compute")
        return mask

    def masks(self, tokens: Sequence[int], tree: Tree) -> list[bytes | None]:
        found: list[bytes | None] = [None] * len(tree)
        found[0] = self.allowed()
        for row in self._walk(tokens, tree):
            try:
                found[row] = self.allowed()
            except UserError:
                found[row] = b""  # as the pending row it will be refused, and say why
        return found

    def legal(self, tokens: Sequence[int], tree: Tree) -> list[int]:
        return sorted(self._walk(tokens, tree))

    def forced(self, limit: int) -> tuple[int, ...]:
        state = self._state
        if self.is_over or limit <= 0:
            return ()
        if state is not None:
            assert self._free is not None
            return tuple(self._free.forced(state, len(self._marks))[:limit])
        return tuple(self._inner.compute_ff_tokens()[:limit])

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not self._accept(token):
                raise self._failure() if self._inner.is_error() else RunError(f"token {token} breaks the grammar")

    def rollback(self, num_tokens: int) -> None:
        assert 0 <= num_tokens <= len(self._marks), "so many tokens have not been accepted"
        if num_tokens == 0:
            return
        inside = self._marks[-num_tokens:].count(_INSIDE)
        del self._tokens[-num_tokens:], self._marks[-num_tokens:]
        if inside and (self._inner.is_error() or not self._inner.rollback(inside)):
            self._begin_again()

    def _walk(self, tokens: Sequence[int], tree: Tree) -> Iterator[int]:
        """The drafted rows that the grammar allows, each while this stands behind it; depth first. At the end it stands
        where it stood."""
        path: list[int] = []  # rows that are accepted
        todo = list(reversed(tree.children[0]))
        while todo:
            row = todo.pop()
            while path and path[-1] != tree.parents[row]:
                path.pop()
                self.rollback(1)
            if self._accept(tokens[row - 1]):
                path.append(row)
                yield row
                todo += reversed(tree.children[row])
            elif self._inner.is_error():
                self._begin_again()
        self.rollback(len(path))
        if self._inner.is_error():
            self._begin_again()

    def _accept(self, token: int) -> bool:
        state = self._state
        if state is not None:
            assert self._free is not None
            mark = self._free.state_after(state, token)
            if mark is None:
                return False
        elif self._marks and self._marks[-1] == _END:
            return False
        elif token in self._end_ids:
            if not self._inner.is_accepting():
                return False
            mark = _END
        elif self._inner.is_stopped() or self._inner.try_consume_tokens([token]) != 1:
            return False
        else:
            mark = _INSIDE
        self._tokens.append(token)
        self._marks.append(mark)
        return True

    def _begin_again(self) -> None:
        self._inner = self._start()
        read = [t for t, mark in zip(self._tokens, self._marks, strict=True) if mark == _INSIDE]
        assert self._inner.try_consume_tokens(read) == len(read), "what was accepted once is accepted again"

    def _failure(self) -> UserError:
        return _too_complex(self._inner.get_error().removesuffix("<non-verbose/>").strip()[:300])


def _too_complex(why: str) -> UserError:
    return UserError("the grammar is too complex at this place", why=why, try_="a simpler grammar")
