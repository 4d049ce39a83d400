"""How far a search is, and what came of it."""

from dataclasses import dataclass

from stretto.solve.group import Group
from stretto.solve.outcome import Choice, Outcome, Stopped, choose


@dataclass(frozen=True, slots=True)
class Status:
    """running, ended: texts or steps. leader: the answer with most votes so far; votes: its own, and those of all."""

    running: int
    ended: int
    tokens: int
    leader: str | None
    votes: tuple[int, int]


def status_of(group: Group) -> Status:
    """Now."""
    nodes = [node for root in group.roots for child in root.children for node in child.walk()]
    choice, running = choose(nodes), [node for node in nodes if node.ending == "open"]
    leader = choice.node.answer if choice.node is not None else None
    votes = int(choice.weights[leader]) if leader is not None else 0
    tokens = group.requests.budget.spent + sum(len(node.token_ids) for node in running)
    return Status(len(running), len(nodes) - len(running), tokens, leader, (votes, int(sum(choice.weights.values()))))


def outcome_of(group: Group, choice: Choice) -> Outcome:
    """What a search has chosen, with the tree and what it took."""
    stopped: Stopped = "decided" if choice.decided else "done"
    if group.requests.was_short and not choice.decided:
        stopped = "tokens" if group.requests.budget.has_time else "seconds"
    return Outcome(
        answer=choice.node.answer if choice.node is not None else None,
        text=choice.node.solution if choice.node is not None else "",
        weights=choice.weights,
        stopped=stopped,
        spent=group.requests.spent(),
        seed=group.seed,
        roots=tuple(group.roots),
    )
