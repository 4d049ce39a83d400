"""`--draft auto` beside plain decoding, over the prompts of bench/prompts/: is it never slower, and when faster?

    python bench/draft_auto.py [--rounds 3] [--tokens 160] [--kinds copying,code] [--model smollm2] [--draft auto]

Writes bench/records/draft_auto-<kind of CPU>.json, for a run over all kinds. Two engines over the same weights are in
one process (two copies may differ by a tenth in speed), one that decodes plainly and one that drafts. They
answer each prompt greedily at the same time, step by step in turn: the one that has fewer tokens goes on, so that
whatever else the machine does meets both within a few steps. The time of an answer is the sum of its engine's steps
after the first token; a ratio is plain / drafts, above 1 where drafts help, the median over the rounds. The ids must be
the same, or nothing is written. Forward steps and drafted rows are counted, too: they say without a clock how much was
tried. At last the answers are given once more to the policy with a clock that says what rows cost when nothing else
runs (`draft_replay.py`), which no noise reaches. The engine that drafts learns from prompt to prompt, as that of a
server does; prompts of all kinds come mixed, in an order that is the same in every run.
"""

import argparse
import json
import os
import random
import shlex
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch
from draft_replay import Machine, replay
from peers.kinds import kind_of

from stretto import LLM, Sampling
from stretto.core.costs import break_even
from stretto.core.env import read_env
from stretto.engine.engine import Engine
from stretto.planner.measure import describe_machine
from stretto.planner.record import as_record, result
from stretto.runner.staircase import row_seconds
from stretto.text.stream import Text

FOLDER = Path(__file__).parent / "prompts"
RECORDS = Path(__file__).parent / "records"
KINDS = ("chat", "questions", "mathematics", "code", "rewriting", "copying")
PATIENCE = 0.25  # seconds: of `LLM.generate`, whose plain steps run a dozen at once


class Answer:
    """One engine at work on one prompt. seconds: of its steps after the first token."""

    def __init__(self, engine: Engine, llm: LLM, ids: list[int], sampling: Sampling) -> None:
        text = Text(llm.tokenizer, sampling.stops, continues=False)
        self._engine, self.request = engine, engine.add(ids, sampling.resolve(llm.hints), text)
        self.tokens: list[int] = []
        self.seconds, self.is_over = 0.0, False

    def step(self) -> None:
        """One step of the engine."""
        started, had_some = time.perf_counter(), bool(self.tokens)
        for event in self._engine.step(PATIENCE):
            if event.error is not None:
                raise event.error
            self.tokens += event.token_ids
            self.is_over = event.finish_reason is not None
        if had_some:
            self.seconds += time.perf_counter() - started


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--draft", default="auto")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    torch.set_num_threads(1)  # nothing here computes with torch
    llm = LLM(options.model, draft=options.draft, max_seqs=1, prefix_cache="none")
    runner, threads = llm.engine.runner, llm.backend_choice.threads
    plain = Engine(
        runner.model, runner.sizes, eos_ids=llm.engine.eos_ids, vocab_size=runner.vocab_size, threads=threads
    )
    prompts = [prompt for kind in kinds for prompt in read(kind)]
    random.Random(0).shuffle(prompts)
    sampling = Sampling(temperature=0.0, ignore_eos=True, max_tokens=options.tokens)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for turn in range(options.rounds):
        for n, (name, text) in enumerate(prompts):
            print(f"\rround {turn + 1}/{options.rounds}, prompt {n + 1}/{len(prompts)} ", end="", file=sys.stderr)
            found[name].append(pair(llm, plain, text, sampling, turn + n))
            if turn:
                del found[name][-1]["answer"]  # the same again
    print(file=sys.stderr)
    stairs = row_seconds(plain.runner, budget=5.0, rounds=20)
    answers = {name: runs[0].pop("answer") for name, runs in found.items()}
    quiet = replay(answers, Machine(rows=stairs), draft=options.draft) if options.draft != "none" else {}
    report(found, quiet, kinds, stairs)
    if set(kinds) == set(KINDS):
        write(found, quiet, stairs, llm.backend_choice.name)


def read(kind: str) -> list[tuple[str, str]]:
    """Names and texts of the prompts of a kind."""
    lines = (FOLDER / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    return [(one["id"], one["prompt"]) for one in map(json.loads, lines)]


def pair(llm: LLM, plain: Engine, text: str, sampling: Sampling, turn: int) -> dict[str, Any]:
    """Both answers to a prompt; what they took. turn: who begins."""
    ids = llm.encode_chat([{"role": "user", "content": text}])
    both = [Answer(engine, llm, ids, sampling) for engine in (plain, llm.engine)]
    order = both[:: -1 if turn % 2 else 1]
    while not all(one.is_over for one in both):
        min((one for one in order if not one.is_over), key=lambda one: len(one.tokens)).step()
    if both[0].tokens != both[1].tokens:
        raise SystemExit(f"drafts change the answer to: {text}")
    line = both[1].request.timeline
    return {
        "answer": (ids, both[0].tokens),
        "ratio": both[0].seconds / both[1].seconds,
        "plain_s": both[0].seconds,
        "steps": line.steps,
        "drafted": line.drafted,
        "accepted": line.accepted,
    }


def report(
    found: dict[str, list[dict[str, Any]]], quiet: dict[str, float], kinds: list[str], stairs: dict[int, float]
) -> None:
    """The table, on standard output."""
    for name, runs in sorted(found.items(), key=lambda item: (item[0].split("-")[0], int(item[0].split("-")[1]))):
        line = {key: median(run[key] for run in runs) for key in runs[0]}
        print(
            f"{name:15} {line['ratio']:6.3f}  steps {line['steps']:4.0f}  drafted {line['drafted']:4.0f}"
            f"  accepted {line['accepted']:4.0f}  plain {line['plain_s']:.2f} s"
        )
    for what, ratios in (("measured", by_prompt(found)), ("by what rows cost", quiet)):
        for kind in (*kinds, "") if ratios else ():
            own = [ratio for name, ratio in ratios.items() if name.startswith(kind)]
            print(f"{what}: {kind or 'all':12} {geometric_mean(own):6.3f}  worst {min(own):.3f}  best {max(own):.3f}")
    for rows, seconds in stairs.items():
        least = break_even(seconds / stairs[1], rows - 1) if rows > 1 else 0.0
        print(f"{rows:3} rows {1e3 * seconds:7.2f} ms" + (f"  pays from {least:.2f} per token" if rows > 1 else ""))


def by_prompt(found: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """The median ratio of every prompt."""
    return {name: median(run["ratio"] for run in runs) for name, runs in found.items()}


def write(
    found: dict[str, list[dict[str, Any]]], quiet: dict[str, float], stairs: dict[int, float], backend: str
) -> None:
    """The record of a run over all prompts."""
    rounds = len(next(iter(found.values())))
    samples: dict[str, list[float]] = {}
    for turn in range(rounds):
        ratios = {name: runs[turn]["ratio"] for name, runs in found.items()}
        groups = {kind: [r for name, r in ratios.items() if name.startswith(f"{kind}-")] for kind in KINDS}
        for kind, own in {**groups, "all prompts": list(ratios.values())}.items():
            samples.setdefault(f"{kind}: drafts / plain, geometric mean", []).append(geometric_mean(own))
    medians = by_prompt(found)
    samples["worst prompt: drafts / plain"] = [min(medians.values())]
    worst = min(medians, key=lambda name: medians[name])
    if quiet:
        samples["all prompts: drafts / plain by what rows cost, geometric mean"] = [geometric_mean(quiet.values())]
        samples["worst prompt: drafts / plain by what rows cost"] = [min(quiet.values())]
    for rows, seconds in stairs.items():
        samples[f"step of {rows} rows / step of 1 row"] = [seconds / stairs[1]]
    machine = describe_machine()
    kind = read_env().level or kind_of(machine["features"])
    machine |= {"kind": kind, "native": backend, "load_average": os.getloadavg(), "worst_prompt": worst}
    command = shlex.join(["python", "bench/draft_auto.py", *sys.argv[1:]])
    results = [result(quantity, "times", runs) for quantity, runs in samples.items()]
    samples |= {f"{name}: drafts / plain": [run["ratio"] for run in runs] for name, runs in sorted(found.items())}
    work = {name: {key: runs[-1][key] for key in ("steps", "drafted", "accepted")} for name, runs in found.items()}
    record = as_record(
        "SmolLM2-135M, drafts beside plain decoding", command, machine | {"work": work}, results, samples
    )
    path = RECORDS / f"draft_auto-{kind}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
