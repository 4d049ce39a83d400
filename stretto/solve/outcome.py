"""What a search found."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from stretto.solve.tree import Node

Stopped = Literal["decided", "done", "tokens", "seconds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a search takes. node: the text that gives the answer; None = there is no answer. weights: by answer, the
    heaviest first. decided: it stopped early, since more could not change the answer or were not needed."""

    node: Node | None
    weights: Mapping[str, float]
    decided: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """tokens: sampled, those of scorers too. prompt_tokens: of requests that ended, and how many of them the prefix
    cache had."""

    tokens: int
    prompt_tokens: int
    cached_tokens: int
    requests: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """stopped: `decided`: more would not change the answer, or was not needed; `done`: the search came to its end;
    `tokens`, `seconds`: the budget did. seed: what `Sampling.seed` must be to get the same again. roots: the tree."""

    answer: str | None
    text: str
    weights: Mapping[str, float]
    stopped: Stopped
    spent: Spent
    seed: int
    roots: tuple[Node, ...]

    @property
    def nodes(self) -> list[Node]:
        """All nodes, parents first."""
        return [node for root in self.roots for node in root.walk()]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "answer": self.answer,
            "text": self.text,
            "weights": dict(self.weights),
            "stopped": self.stopped,
            "spent": asdict(self.spent),
            "seed": self.seed,
            "tree": [node.as_dict() for node in self.nodes],
        }


def choose(nodes: Iterable[Node], *, weighted: bool = False, decided: bool = False) -> Choice:
    """The answer with most votes, or of most weight by the scores of its nodes. Of equal ones, that of the node whose
    path comes first; its text is that of its best node, by the same rule."""
    answered = sorted((node for node in nodes if node.answer is not None), key=lambda node: node.path)
    weights: dict[str, float] = {}
    for node in answered:
        assert node.answer is not None
        weights[node.answer] = weights.get(node.answer, 0.0) + ((node.score or 0.0) if weighted else 1)
    if not answered:
        return Choice(node=None, weights={}, decided=decided)
    ranked = dict(sorted(weights.items(), key=lambda item: -item[1]))  # sorting keeps the order of equal ones
    winner = next(iter(ranked))
    theirs = [node for node in answered if node.answer == winner]
    best = max(theirs, key=lambda node: node.score or 0.0) if weighted else theirs[0]
    return Choice(node=best, weights=ranked, decided=decided)
