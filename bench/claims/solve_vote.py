"""Self-consistency (arXiv 2203.11171; votes as M1, 2504.10449, and Thinking Slow, Fast, 2502.20339, use them): accuracy
by the number of texts and by the tokens that they take.

    python bench/claims/solve_vote.py [--questions 40]

Writes bench/records/claim_solve_vote.json. Shown: SmolLM2 on sums of two numbers, with worked examples before them,
sampled at temperature 0.7. A vote that stops as soon as its winner is certain, all texts at once or four at a time, has
the winner of the whole vote (asserted for every question) for fewer tokens. Not shown: accuracy at equal seconds, a
hybrid against its teacher; for that, weights of such a pair are missing.
"""

import argparse

from _solving import accuracy, mean, solve_all, write_record
from _tasks import sums

from stretto import LLM
from stretto.solve import SearchOptions


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=40)
    options = parser.parse_args()
    llm = LLM("smollm2", draft="none", context=2048, max_seqs=16)
    tasks = sums(options.questions, terms=2)
    ways = {
        f"vote of {n}, {how}": SearchOptions(search=f"vote:n={n}{extra}")
        for n in (1, 2, 4, 8, 16)
        for how, extra in (("whole", ",whole=true"), ("all at once", ""), ("4 at a time", ",width=4"))
    }
    found = solve_all(llm, tasks, ways)
    rows = {}
    for name, outcomes in found.items():
        whole = found[name.partition(",")[0] + ", whole"]
        assert [one.answer for one in outcomes] == [one.answer for one in whole], "an early winner is the winner"
        rows[f"{name}: accuracy"] = "%", mean(accuracy(outcomes, tasks))
        rows[f"{name}: tokens"] = "per question", mean([one.spent.tokens for one in outcomes])
    for n in (8, 16):
        spent = [one.spent for one in found[f"vote of {n}, whole"]]
        cached = sum(one.cached_tokens for one in spent) / sum(one.prompt_tokens for one in spent)
        rows[f"vote of {n}, whole: prompt tokens that were known"] = "%", 100 * cached
    about = {"shown": "shown", "backend": llm.backend_choice.name, "questions": options.questions}
    write_record("claim_solve_vote.json", "Votes over sums", rows, about)


if __name__ == "__main__":
    main()
