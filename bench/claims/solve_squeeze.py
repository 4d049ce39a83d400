"""Squeeze Evolve (arXiv 2604.07725): merging candidates with the strongest model only where they are least sure.

    python bench/claims/solve_squeeze.py [--questions 200]

Writes bench/records/claim_solve_squeeze.json. Simulated: two models of known skill; a token of the strong one costs
ten times as much. `percentile 100` is the strong model alone, 0 the cheap one in all rounds but the first. The
population is counted by how many answers differ in it at the end. Missing for more: two models of which one can repair
what the other wrote.
"""

import argparse
import asyncio
import random

from _skilled import question, skilled
from _solving import mean, write_record

from stretto import Sampling
from stretto.solve import Outcome, SearchOptions, run_search

EXTRACT = r"regex:=(\d);$"
PRICE = 10.0  # of a token of the strong model, in those of the cheap one
WAYS = {
    "percentile 100": "squeeze:n=8,k=4,rounds=2,percentile=100",
    "percentile 50": "squeeze:n=8,k=4,rounds=2",
    "percentile 50, a quarter voted": "squeeze:n=8,k=4,rounds=2,lite=0.25",
    "percentile 50, by agreement": "squeeze:n=8,k=4,rounds=2,by=agreement",
    "percentile 25": "squeeze:n=8,k=4,rounds=2,percentile=25",
    "percentile 0": "squeeze:n=8,k=4,rounds=2,percentile=0",
}


def cost(outcome: Outcome) -> float:
    """Of what was written, in tokens of the cheap model; those that a pass over a candidate takes are left out."""
    return sum(len(node.token_ids) * (PRICE if node.model == 0 else 1.0) for node in outcome.nodes)


async def measure(num: int) -> dict[str, tuple[str, float]]:
    rows = {}
    for name, search in WAYS.items():
        noise, found, right = random.Random(2), list[Outcome](), list[bool]()
        models = [skilled(skill=0.7, sight=0.6), skilled(skill=0.4, sight=0.3)]
        for i in range(num):
            text, answer = question(noise)
            options = SearchOptions(search=search, extract=EXTRACT)
            found.append(await run_search(models, text, options, Sampling(seed=i, max_tokens=64)))
            right.append(found[-1].answer == answer)
        merged = [root for one in found for root in one.roots[1:]]
        rows[f"{name}: accuracy"] = "%", 100 * mean(right)
        rows[f"{name}: cost"] = "tokens of the cheap model", mean([cost(one) for one in found])
        rows[f"{name}: merged by the strong model"] = "%", 100 * mean([root.model == 0 for root in merged])
        rows[f"{name}: different answers at the end"] = "of 8", mean([len(one.weights) for one in found])
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200)
    options = parser.parse_args()
    rows = asyncio.run(measure(options.questions))
    about = {"shown": "simulated", "questions": options.questions, "price": PRICE}
    write_record("claim_solve_squeeze.json", "Candidates merged by two models", rows, about)


if __name__ == "__main__":
    main()
