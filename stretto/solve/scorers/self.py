"""The model is asked whether what it wrote is right: the probability of yes beside that of no.

    score = P(yes) / (P(yes) + P(no))

over those of the 20 likeliest first tokens that begin one of the two words; 0.5 where none does. Source: arXiv
2207.05221, P(True).
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stretto.core.card import Can, Card
from stretto.solve.sockets import Scorer
from stretto.solve.tree import Node

if TYPE_CHECKING:
    from stretto.solve.group import Group

QUESTION = "Is everything that is said above correct so far? Answer with one word, yes or no."


class Self(Scorer):
    """One token per node, behind a prompt that begins with the question."""

    async def score(self, group: "Group", nodes: Sequence[Node]) -> list[float]:
        said = await group.next_tokens(nodes, QUESTION)
        words = [group.models[node.model].decode for node in nodes]
        return [
            0.0 if one is None else agreement({decode([token]): p for token, p in one.top.items()})
            for one, decode in zip(said, words, strict=True)
        ]


def agreement(logprobs: Mapping[str, float]) -> float:
    """By the log-probabilities of words."""
    mass = {"yes": 0.0, "no": 0.0}
    for word, logprob in logprobs.items():
        if (said := word.strip().strip(".,!").lower()) in mass:
            mass[said] += math.exp(logprob)
    total = sum(mass.values())
    return mass["yes"] / total if total else 0.5


CARD = Card(
    name="self",
    make=Self,
    idea="the model says whether it is right: the probability of yes beside that of no",
    paper="2207.05221",
    can=Can(0),
    cost="one pass over each text, and one token",
)
