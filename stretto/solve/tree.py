"""`Node`: a text in the tree of a search."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from stretto.engine.request import TokenLogprobs

Ending = Literal["open", "end", "step", "length", "cut"]


@dataclass(slots=True, eq=False, kw_only=True)
class Node:
    """Tokens that a model wrote behind those of `parent`; a root has none of its own, only a prompt.

    path: numbers of children, from the number of the root on; they decide the noise. prompt: all tokens before its
    own. text: of its own tokens; solution: of all tokens behind the prompt of its root. model: who writes it. ending:
    `open` while it is written, `end` where the model ended it, `step` at one of the strings that end a step, `length`
    at the limit of its tokens, `cut` where the search ended before it. sources: of a root that joins others, these.
    answer: in `solution`, if there is one. score: from 0 to 1. cached: tokens of the prompt that the prefix cache had.
    logprobs: of its own tokens, if they were asked for.
    """

    path: tuple[int, ...]
    prompt: tuple[int, ...]
    parent: "Node | None" = None
    model: int = 0
    sources: tuple["Node", ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    text: str = ""
    solution: str = ""
    ending: Ending = "open"
    answer: str | None = None
    score: float | None = None
    cached: int = 0
    children: list["Node"] = field(default_factory=list)

    @property
    def ids(self) -> tuple[int, ...]:
        """Its prompt and its own tokens."""
        return self.prompt + self.token_ids

    @property
    def root(self) -> "Node":
        return self if self.parent is None else self.parent.root

    @property
    def written(self) -> tuple[int, ...]:
        """The tokens of `solution`."""
        return self.ids[len(self.root.prompt) :]

    @property
    def ancestors(self) -> Iterator["Node"]:
        """Those it stands on, from its parent up."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    @property
    def name(self) -> str:
        """Its path as text: `0.2.1`."""
        return ".".join(map(str, self.path))

    def walk(self) -> Iterator["Node"]:
        """Itself, and all that stands on it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "sources": [one.name for one in self.sources],
            "model": self.model,
            "text": self.text,
            "tokens": len(self.token_ids),
            "prompt_tokens": len(self.prompt),
            "cached_tokens": self.cached,
            "ending": self.ending,
            "score": self.score,
            "answer": self.answer,
        }
