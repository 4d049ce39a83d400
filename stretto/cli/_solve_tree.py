"""The tree of a search for readers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stretto.solve import Outcome
    from stretto.solve.tree import Node

_WIDTH = 72  # characters of a text


def tree_lines(outcome: "Outcome") -> Iterator[str]:
    """A line for every text: what it stands on, its score, tokens, answer, and how it goes on."""
    for root in outcome.roots:
        of = f", joins {', '.join(one.name for one in root.sources)}" if root.sources else ""
        yield f"{root.name}  prompt of {len(root.prompt):,} tokens{of}"
        yield from _below(root, "")


def _below(node: "Node", indent: str) -> Iterator[str]:
    for number, child in enumerate(node.children, 1):
        last = number == len(node.children)
        yield f"{indent}{'└─ ' if last else '├─ '}{_line(child)}"
        yield from _below(child, indent + ("   " if last else "│  "))


def _line(node: "Node") -> str:
    text = " ".join(node.text.split())
    facts = [f"{len(node.token_ids)} tokens", *([] if node.score is None else [f"score {node.score:.2f}"])]
    facts += [node.ending] * (node.ending in ("cut", "length"))
    facts += [] if node.answer is None else [f"answer {node.answer}"]
    return f"{node.name}  [{', '.join(facts)}] {text if len(text) <= _WIDTH else text[: _WIDTH - 1] + '…'}"
