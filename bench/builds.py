"""This checkout beside an earlier commit, with the same model and prompts: writes bench/records/builds[-LEVEL].json.

    python bench/builds.py [COMMIT] [--rounds 10] [--level avx2]

Both stay in memory, a process each, and are asked in turn, in an order that changes: what else the machine does meets
both within seconds. A number is the ratio of the two in one round, above 1 where this checkout is better. Prompts are
the text of the README. The tokens of greedy and of drawn answers, with and without drafts, must be the same, and their
log-probabilities within 1e-4, or nothing is written. --level holds both to an instruction-set level. The earlier commit
is checked out in a folder that is removed afterwards. Nothing here is a test.
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
from typing import Any

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "bench" / "records"
TEXT = (ROOT / "README.md").read_text(encoding="utf-8") * 4


def worker() -> None:
    """One build: answers the questions on standard input, one a line, with a number of which less is better."""
    started = time.perf_counter()
    from stretto import LLM, Sampling

    llm = LLM("smollm2", draft="none", context=2048)
    seconds = time.perf_counter() - started

    def decode(streams: int, num_tokens: int) -> float:
        """Seconds per token of one stream, the prompt aside, or of all streams together."""
        prompts = [TEXT[100 * i : 100 * i + 200] for i in range(streams)]
        begun = time.perf_counter()
        done = llm.generate(prompts, Sampling(temperature=0, max_tokens=num_tokens, ignore_eos=True))
        if streams == 1:
            return 1 / done[0].timings.predicted_per_second
        return (time.perf_counter() - begun) / sum(result.usage.completion_tokens for result in done)

    coarse: list[LLM] = []  # made when it is asked for

    def prefill(one: LLM) -> float:
        done = one.generate([TEXT[:4000]], Sampling(temperature=0, max_tokens=1))[0]
        return done.timings.prefill_s / done.usage.prompt_tokens

    def coarse_prefill() -> float:
        if not coarse:
            coarse.append(LLM("smollm2", draft="none", context=2048, prefill="int8"))
        return prefill(coarse[0])

    def answers() -> tuple[str, list[float]]:
        tokens, logprobs = [], list[float]()
        for draft in ("none", "ngram"):
            one = LLM("smollm2", draft=draft, context=1024)
            prompts = [TEXT[37 * i : 37 * i + 20 + 3 * i] for i in range(100)]
            for temperature in (0.0, 0.8):
                how = [
                    Sampling(temperature=temperature, seed=i, max_tokens=16, logprobs=i % 3 or None) for i in range(100)
                ]
                for result in one.generate(prompts, how):
                    tokens.append(result.token_ids)
                    logprobs += [token.logprob for token in result.logprobs]
        return hashlib.sha256(json.dumps(tokens).encode()).hexdigest(), logprobs

    ask = {
        "start": lambda: seconds,
        "decode x1": lambda: decode(1, 96),
        "prefill": lambda: prefill(llm),
        "prefill int8": coarse_prefill,
        "total x8": lambda: decode(8, 48),
        "total x32": lambda: decode(32, 24),
        "peak memory": lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "answers": answers,
    }
    for line in sys.stdin:
        print(json.dumps(ask[line.strip()]()), flush=True)


class Build:
    """A process of the package in `folder`."""

    def __init__(self, folder: Path, level: str = "") -> None:
        words = [sys.executable, "-P", __file__, "--worker"]
        environ = {**os.environ, "PYTHONPATH": str(folder), **({"STRETTO_LEVEL": level} if level else {})}
        environ["STRETTO_PREFIX_CACHE"] = "none"  # prompts repeat, and are to be read each time
        self._process = subprocess.Popen(words, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, question: str) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default="HEAD~1")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--level", default="", help="instruction-set level (default: the best)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker()
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
            ratios = compare(before, options.rounds, options.level)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(before)], check=True)
    level = ["--level", options.level] if options.level else []
    record = as_record(
        f"SmolLM2-135M Q4_1 on a CPU, beside commit {commit}{f', level {options.level}' if level else ''}",
        shlex.join(["python", "bench/builds.py", commit, "--rounds", str(options.rounds), *level]),
        describe_machine(),
        [result(f"{quantity}: times as good as {commit}", "times", runs) for quantity, runs in ratios.items()],
        ratios,
    )
    file = RECORDS / f"builds{f'-{options.level}' if level else ''}.json"
    file.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {file}", file=sys.stderr)


def compare(before: Path, rounds: int, level: str) -> dict[str, list[float]]:
    """By quantity, of every round: the earlier build's number divided by that of this checkout (less is better)."""
    ratios: dict[str, list[float]] = {}

    def note(quantity: str, numbers: dict[Path, float]) -> None:
        ratios.setdefault(quantity, []).append(numbers[before] / numbers[ROOT])

    builds = {folder: Build(folder, level) for folder in (before, ROOT)}
    tokens, logprobs = zip(*(build("answers") for build in builds.values()), strict=True)  # compiles both, too
    # 1e-4: builds that sum over the vocabulary in fp32 are off by up to 2e-5
    if len(set(tokens)) > 1 or max(abs(a - b) for a, b in zip(*logprobs, strict=True)) > 1e-4:
        raise SystemExit("the two builds give other tokens or log-probabilities")
    for build in builds.values():
        build.close()
    builds = {folder: Build(folder, level) for folder in (before, ROOT)}
    for turn in range(rounds):
        order = (before, ROOT) if turn % 2 else (ROOT, before)
        fresh, memory = dict[Path, float](), dict[Path, float]()
        for folder in order:
            one = Build(folder, level)
            fresh[folder] = one("start")
            one("decode x1")
            memory[folder] = one("peak memory")
            one.close()
        note("start", fresh)
        note("peak memory", memory)
        for quantity in ("decode x1", "prefill", "prefill int8", "total x8", "total x32"):
            several = {folder: list[float]() for folder in order}
            for _ in range(3):
                for folder in order:
                    several[folder].append(builds[folder](quantity))
            note(quantity, {folder: median(runs) for folder, runs in several.items()})
        shown = ", ".join(f"{quantity} {median(runs):.3f}" for quantity, runs in ratios.items())
        print(f"round {turn + 1}/{rounds}: {shown}", file=sys.stderr)
    for build in builds.values():
        build.close()
    return ratios


if __name__ == "__main__":
    main()
