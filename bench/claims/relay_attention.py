"""RelayAttention (arXiv 2402.14808): decoding sequences that share a long beginning, attended together and one by one.

    python bench/claims/relay_attention.py [--rounds 15]

Writes bench/records/claim_relay_attention.json. Shown: SmolLM2 on native kernels, 8 and 32 sequences of 1,024 shared
tokens of real text and 64 of their own. Both ways take turns over the same caches; a step with hardly any context is
what is not attention. The scores of both ways must be equal to the bit. Bytes are those of keys and values that are
read from pages, counted, not measured.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from stretto import LLM
from stretto.cache import manager
from stretto.planner.measure import describe_machine
from stretto.planner.record import as_record, result
from stretto.runner.runner import Rows, Runner

RECORD = Path(__file__).parents[1] / "records" / "claim_relay_attention.json"
TEXT = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8") * 20
SHARED, OWN, SPLIT = 1024, 64, 256


def fill(runner: Runner, rid: int, tokens: list[int]) -> None:
    """Everything but the last token is in the cache."""
    held = runner.cache.admit(rid, tokens, "")
    while held < len(tokens) - 1:
        rows = min(128, len(tokens) - 1 - held)
        assert runner.cache.reserve(rid, rows), "no memory"
        step = runner.pack([Rows(rid, tokens[held : held + rows], is_step=False)])
        runner.forward(step)
        runner.commit(step, [()])
        held += rows


def step_of(runner: Runner, texts: dict[int, list[int]]) -> Any:
    """All sequences decode their last token; those that share pages are neighbours."""
    parts = []
    for rid in sorted(texts, key=lambda rid: list(runner.cache.beginning(rid))):
        assert runner.cache.reserve(rid, 1)
        parts.append(Rows(rid, (texts[rid][-1],), wants=1))
    runner.cache._open.clear()  # the step before was not committed, and need not be
    return runner.pack(parts)


def measure(runner: Runner, texts: dict[int, list[int]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a step, one way and the other in turn."""
    count, found, bits = manager.num_shared, dict[str, list[float]](), dict[str, Any]()
    for _ in range(rounds):
        for way, shared in (("together", count), ("one by one", lambda *tables: None)):
            manager.num_shared = shared  # type: ignore[assignment]
            step = step_of(runner, texts)
            started = time.perf_counter()
            scores = runner.forward(step).scores
            found.setdefault(way, []).append(1e3 * (time.perf_counter() - started))
            bits[way] = scores.logits.clone()
    manager.num_shared = count
    assert len({tuple(one.flatten().tolist()) for one in bits.values()}) == 1, "other bits"
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    llm = LLM("smollm2", draft="none", max_seqs=32, context=2048, kv="auto")
    runner, ids = llm.engine.runner, llm.encode(TEXT)
    token_bytes = sum(runner.cache.pools.layout.page_bytes.values()) // 16
    samples: dict[str, list[float]] = {}
    rows = []
    for streams in (8, 32):
        texts = {i: [*ids[:SHARED], *ids[2000 + 100 * i : 2000 + 100 * i + OWN]] for i in range(streams)}
        short = {100 + i: ids[3000 + 100 * i : 3000 + 100 * i + 8] for i in range(streams)}
        for group in (texts, short):
            for rid, tokens in group.items():
                fill(runner, rid, tokens)
        plain = median(measure(runner, short, rounds)["one by one"])
        found = measure(runner, texts, rounds)
        for rid in (*texts, *short):
            runner.cache.release(rid)
        attention = {way: [ms - plain for ms in values] for way, values in found.items()}
        for way in found:
            samples[f"step of {streams}, {way}"] = found[way]
            samples[f"attention of {streams}, {way}"] = attention[way]
        ratio = [b / a for a, b in zip(attention["together"], attention["one by one"], strict=True)]
        samples[f"attention of {streams}, one by one / together"] = ratio
        whole = SHARED // SPLIT * SPLIT  # of whole splits
        once = whole + streams * (SHARED + OWN - whole)
        read = [n * token_bytes / 1e6 for n in (streams * (SHARED + OWN), once)]
        steps = " and ".join(f"{median(values):.1f} ms {way}" for way, values in found.items())
        print(f"{streams:3} sequences: a step takes {steps}; attention {median(ratio):.2f} times as fast;")
        print(f"    keys and values read: {read[0]:,.0f} MB one by one, {read[1]:,.0f} MB together")
    rows = [result(name, "x" if "/" in name else "ms", values) for name, values in samples.items()]
    machine = describe_machine() | {"shown": "shown", "backend": llm.backend_choice.name}
    command = shlex.join(["python", *sys.argv])
    RECORD.write_text(
        json.dumps(as_record("Shared beginnings attended together", command, machine, rows, samples), indent=1)
    )


if __name__ == "__main__":
    main()
