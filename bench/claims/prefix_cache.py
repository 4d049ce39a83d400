"""A prefix cache (arXiv 2312.07104): conversations of several turns, with what earlier turns left and without it.

    python bench/claims/prefix_cache.py [--users 6] [--turns 6]

Writes bench/records/claim_prefix_cache.json. Shown: SmolLM2 on native kernels, users whose turns come mixed, behind one
system prompt. Two engines over the same weights answer every turn, one after the other, greedily: their tokens must be
the same. Hits are compared with what a list of all earlier texts could give at most.
"""

import argparse
import json
import random
import shlex
import sys
from pathlib import Path
from statistics import median

from stretto import LLM, Sampling
from stretto.planner.measure import describe_machine
from stretto.planner.record import as_record, result

RECORD = Path(__file__).parents[1] / "records" / "claim_prefix_cache.json"
TEXT = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split("\n\n")
QUESTIONS = ("What does this say?", "Say it in one sentence.", "What is missing?", "And who would use it?", "Why?")


def common(first: list[int], second: list[int]) -> int:
    """Tokens that two texts begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=6)
    parser.add_argument("--turns", type=int, default=6)
    options = parser.parse_args()
    rng = random.Random(1)
    warm = LLM("smollm2", draft="none", context=4096)
    cold = LLM("smollm2", draft="none", context=4096, prefix_cache="none")
    sampling = Sampling(temperature=0, max_tokens=48)
    system = {"role": "system", "content": "You answer briefly. " + " ".join(TEXT[:4])[:1500]}
    chats = [[system] for _ in range(options.users)]
    past: list[list[int]] = []
    samples: dict[str, list[float]] = {"first token, with": [], "first token, without": [], "ratio": []}
    cached = possible = tokens = 0
    turns = [user for user in range(options.users) for _ in range(options.turns)]
    rng.shuffle(turns)
    for user in turns:
        chat = chats[user]
        chat.append({"role": "user", "content": f"{rng.choice(TEXT)[:300]}\n{rng.choice(QUESTIONS)}"})
        with_, without = warm.chat(chat, sampling), cold.chat(chat, sampling)
        assert with_.token_ids == without.token_ids, "other tokens"
        prompt = list(with_.prompt_token_ids)
        cached += with_.usage.cached_tokens
        possible += min(len(prompt) - 1, max((common(prompt, one) for one in past), default=0))
        tokens += len(prompt)
        past.append([*prompt, *with_.token_ids])
        samples["first token, with"].append(1e3 * with_.timings.prefill_s)
        samples["first token, without"].append(1e3 * without.timings.prefill_s)
        samples["ratio"].append(without.timings.prefill_s / with_.timings.prefill_s)
        chat.append({"role": "assistant", "content": with_.text})
    samples["cached, of what could be"] = [100 * cached / possible]
    samples["cached, of all prompt tokens"] = [100 * cached / tokens]
    units = {"ratio": "x", "cached, of what could be": "%", "cached, of all prompt tokens": "%"}
    rows = [result(name, units.get(name, "ms"), values) for name, values in samples.items()]
    for name, values in samples.items():
        print(f"{name:30} {median(values):8.1f} {units.get(name, 'ms')}")
    machine = describe_machine() | {"shown": "shown", "backend": warm.backend_choice.name}
    command = shlex.join(["python", *sys.argv])
    record = as_record("Conversations with a prefix cache", command, machine, rows, samples)
    RECORD.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
