"""ETS (arXiv 2502.13575): a tree of steps that keeps less, beside one that keeps whatever gets a place, and votes.

    python bench/claims/solve_ets.py [--questions 24]

Writes bench/records/claim_solve_ets.json. Shown: SmolLM2 on sums of three numbers, a line per addition; a program
scores each line by whether its arithmetic holds. `keys`: tokens whose keys the kept leaves need at a time, at most,
shared ones once; `if nothing were shared`: those of every leaf for itself. Without a cost and a worth of variety, a
search of this kind is REBASE (2408.00724). Not shown: seconds, and a learned scorer.
"""

import argparse
from collections.abc import Iterator

from _solving import accuracy, mean, solve_all, write_record
from _tasks import sums

from stretto import LLM
from stretto.solve import Outcome, SearchOptions
from stretto.solve.tree import Node

WAYS = {
    "vote of 1": "vote:n=1",
    "vote of 16": "vote:n=16,whole=true",
    "rebase, width 16": "ets:width=16,steps=5,by=line,step_tokens=24,cost=0,cover=0",
    "ets, width 16": "ets:width=16,steps=5,by=line,step_tokens=24",
    "ets without variety, width 16": "ets:width=16,steps=5,by=line,step_tokens=24,cover=0",
}


def levels(outcome: Outcome) -> Iterator[list[Node]]:
    """The nodes that are forked, step by step."""
    level = [node for root in outcome.roots for node in root.children]
    while level := [node for node in level if node.children]:
        yield level
        level = [child for node in level for child in node.children]


def held(nodes: list[Node]) -> tuple[int, int]:
    """Tokens whose keys these leaves need, the question apart: shared ones once, and each leaf for itself."""
    chains = [[node, *(one for one in node.ancestors if one.parent is not None)] for node in nodes]
    different = {one.path: len(one.token_ids) for chain in chains for one in chain}
    return sum(different.values()), sum(len(one.token_ids) for chain in chains for one in chain)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=24)
    options = parser.parse_args()
    llm = LLM("smollm2", draft="none", context=2048, max_seqs=16)
    tasks = sums(options.questions, terms=3)
    ways = {name: SearchOptions(search=search, scorer="verifier") for name, search in WAYS.items()}
    found = solve_all(llm, tasks, ways)
    rows = {}
    for name, outcomes in found.items():
        rows[f"{name}: accuracy"] = "%", mean(accuracy(outcomes, tasks))
        rows[f"{name}: tokens"] = "per question", mean([one.spent.tokens for one in outcomes])
        if name.startswith("vote"):
            continue
        steps = [[held(level) for level in levels(outcome)] or [(0, 0)] for outcome in outcomes]
        rows[f"{name}: keys"] = "tokens", mean([max(one for one, _ in step) for step in steps])
        rows[f"{name}: keys, if nothing were shared"] = "tokens", mean([max(one for _, one in step) for step in steps])
        rows[f"{name}: leaves kept"] = "per step", mean([len(one) for outcome in outcomes for one in levels(outcome)])
    about = {"shown": "shown", "backend": llm.backend_choice.name, "questions": options.questions}
    write_record("claim_solve_ets.json", "Tree search over sums", rows, about)


if __name__ == "__main__":
    main()
