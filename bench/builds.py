"""This checkout beside an earlier commit, with the same model and prompts: writes bench/records/builds.json.

    python bench/builds.py [COMMIT] [--rounds 10]

In each round both take their turn, in an order that changes, each in a process of its own; a number is the ratio of the
two in one round, above 1 where this checkout is better. Prompts are the text of the README. The tokens of greedy and of
drawn answers, with and without drafts, must be the same bit for bit, or nothing is written. The earlier commit is
checked out in a folder that is removed afterwards. Nothing here is a test.
"""

import argparse
import hashlib
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "bench" / "records" / "builds.json"
TEXT = (ROOT / "README.md").read_text(encoding="utf-8") * 4


def worker(*, check: bool) -> dict[str, object]:
    """What one build gives: numbers of which less is better, and with `check` a digest of its answers."""
    started = time.perf_counter()
    from stretto import LLM, Sampling

    llm = LLM("smollm2", draft="none", context=2048)
    numbers = {"start": time.perf_counter() - started}

    def decode(streams: int, num_tokens: int = 96) -> float:
        """Seconds per token of one stream, the prompt aside, or of all streams together."""
        prompts = [TEXT[100 * i : 100 * i + 200] for i in range(streams)]
        begun = time.perf_counter()
        done = llm.generate(prompts, Sampling(temperature=0, max_tokens=num_tokens, ignore_eos=True))
        if streams == 1:
            return 1 / done[0].timings.predicted_per_second
        return (time.perf_counter() - begun) / sum(result.usage.completion_tokens for result in done)

    def prefill() -> float:
        done = llm.generate([TEXT[:4000]], Sampling(temperature=0, max_tokens=1))[0]
        return done.timings.prefill_s / done.usage.prompt_tokens

    decode(1, 16)
    numbers["decode x1"] = median(decode(1) for _ in range(5))
    numbers["prefill"] = median(prefill() for _ in range(3))
    numbers["total x8"] = median(decode(8) for _ in range(3))
    numbers["peak memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers = []
    for draft in ("none", "ngram") if check else ():
        llm = LLM("smollm2", draft=draft, context=1024)
        prompts = [TEXT[37 * i : 37 * i + 20 + 3 * i] for i in range(100)]
        for temperature in (0.0, 0.8):
            how = [Sampling(temperature=temperature, seed=i, max_tokens=16, logprobs=i % 3 or None) for i in range(100)]
            answers += [(r.token_ids, [p.logprob for p in r.logprobs]) for r in llm.generate(prompts, how)]
    return {"numbers": numbers, "answers": hashlib.sha256(json.dumps(answers).encode()).hexdigest()}


def run(folder: Path, *, check: bool) -> dict[str, object]:
    """One process of the package in `folder`."""
    words = [sys.executable, "-P", __file__, "--worker", "check" if check else "time"]
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(words, env=environ, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default="HEAD~1")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--worker", choices=("check", "time"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(check=options.worker == "check")))
        return
    from stretto.planner.measure import describe_machine  # not there in every build that a worker measures
    from stretto.planner.record import as_record, result

    git = ["git", "-C", str(ROOT)]
    named = subprocess.run(
        [*git, "rev-parse", "--short", options.commit], check=True, stdout=subprocess.PIPE, text=True
    )
    commit = named.stdout.strip()
    with tempfile.TemporaryDirectory() as temporary:
        before = Path(temporary) / "before"
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(before), commit], check=True)
        try:
            ratios = compare(before, options.rounds)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(before)], check=True)
    record = as_record(
        f"SmolLM2-135M Q4_1 on a CPU, beside commit {commit}",
        shlex.join(["python", "bench/builds.py", commit, "--rounds", str(options.rounds)]),
        describe_machine(),
        [result(f"{quantity}: times as good as {commit}", "times", runs) for quantity, runs in ratios.items()],
        ratios,
    )
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {RECORD}", file=sys.stderr)


def compare(before: Path, rounds: int) -> dict[str, list[float]]:
    """By quantity, of every round: the earlier build's number divided by that of this checkout (less is better)."""
    answers = {folder: run(folder, check=True)["answers"] for folder in (before, ROOT)}  # compiles both, too
    if len(set(answers.values())) > 1:
        raise SystemExit("the two builds give other tokens or log-probabilities")
    ratios: dict[str, list[float]] = {}
    for turn in range(rounds):
        order = (before, ROOT) if turn % 2 else (ROOT, before)
        numbers = {folder: run(folder, check=False)["numbers"] for folder in order}
        for quantity, seconds in numbers[ROOT].items():  # type: ignore[attr-defined]
            ratios.setdefault(quantity, []).append(numbers[before][quantity] / seconds)  # type: ignore[index]
        shown = ", ".join(f"{quantity} {median(runs):.3f}" for quantity, runs in ratios.items())
        print(f"round {turn + 1}/{rounds}: {shown}", file=sys.stderr)
    return ratios


if __name__ == "__main__":
    main()
