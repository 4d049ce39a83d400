"""SEAT (arXiv 2507.06829): rounds of parallel answers that stop when the entropy of the answers says so.

    python bench/claims/solve_seat.py [--questions 300]

Writes bench/records/claim_solve_seat.json. Simulated: a model of known skill that is a little better where it reads
what others said, on questions of all difficulties. The threshold is the 20% quantile of the entropies of first rounds
over 60 other questions. Missing for more: a model that reasons over several answers, which 135 million weights do not.
"""

import argparse
import asyncio
import random

from _skilled import question, skilled
from _solving import mean, write_record

from stretto import Sampling
from stretto.solve import Outcome, SearchOptions, run_search
from stretto.solve.group import Group
from stretto.solve.outcome import Choice, choose
from stretto.solve.searches.seat import SEAT, SUFFIX, entropy, quantile
from stretto.solve.sockets import Search

N, ROUNDS = 8, 6
EXTRACT = r"regex:=(\d);$"


class AllRounds(Search):
    """So many rounds, whatever they say."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    async def run(self, group: Group) -> Choice:
        nodes = group.fork(await group.ask(), N)
        await group.grow(nodes)
        for _ in range(self._rounds - 1):
            nodes = group.fork(await group.join(nodes, SUFFIX), N)
            await group.grow(nodes)
        return choose(nodes)


async def answers(search: Search, num: int, seed: int) -> tuple[list[Outcome], list[bool]]:
    """Outcomes of so many questions, and whether they are right."""
    noise, found, right = random.Random(seed), list[Outcome](), list[bool]()
    model = skilled(skill=0.7, sight=0.4)
    for i in range(num):
        text, answer = question(noise)
        options = SearchOptions(search=search, extract=EXTRACT)
        found.append(await run_search([model], text, options, Sampling(seed=i, max_tokens=64)))
        right.append(found[-1].answer == answer)
    return found, right


async def measure(num: int) -> dict[str, tuple[str, float]]:
    first, _ = await answers(AllRounds(1), 60, seed=1)
    threshold = quantile([entropy([node.answer for node in one.roots[0].children]) for one in first])
    ways: dict[str, Search] = {f"{rounds} rounds": AllRounds(rounds) for rounds in range(1, ROUNDS + 1)}
    ways["secretary"] = SEAT(n=N, rounds=ROUNDS)
    ways["threshold"] = SEAT(n=N, rounds=ROUNDS, threshold=threshold)
    rows = {"threshold": ("nats", threshold)}
    for name, search in ways.items():
        found, right = await answers(search, num, seed=2)
        rows[f"{name}: accuracy"] = "%", 100 * mean(right)
        rows[f"{name}: tokens"] = "per question", mean([one.spent.tokens for one in found])
        rows[f"{name}: rounds"] = "per question", mean([len(one.roots) for one in found])
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=300)
    options = parser.parse_args()
    rows = asyncio.run(measure(options.questions))
    about = {"shown": "simulated", "questions": options.questions}
    write_record("claim_solve_seat.json", "Rounds that stop when answers agree", rows, about)


if __name__ == "__main__":
    main()
