"""stretto and other systems on this CPU, with the same model and prompts: bench/records/cpu_peers-KIND.json, a chart.

    python bench/cpu_peers.py --setup [PEER ...]          install them, each into an environment of its own (once)
    python bench/cpu_peers.py [--peers PEER ...] [--rounds 5]
    python bench/cpu_peers.py --quick                     one short round, printed only
    python bench/cpu_peers.py --level avx2                on a CPU that has more: ours and the others held to AVX2
    python bench/cpu_peers.py --model qwen2.5-coder-0.5b --prompts 512 --streams

Every system runs in a worker process that is stopped while another one is timed. In each round all take their turn, in
an order that changes, and before each turn a read-only pass over as many bytes as the model's matrices have measures
what memory gives at that moment: the bound of decoding. All are greedy, with the same number of threads. A system is
quoted only if it is running this model: what it says next after prefixes of a text must mostly be what stretto says.
Whoever is missing is listed with the reason. A record belongs to a kind of CPU (bench/peers/kinds.py). With a level,
whoever is seen with AVX-512 state all the same is shown, but is no part of a ratio.

However this ends, the workers end with it.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from peers.check import start
from peers.client import Keeper, end_on_signals
from peers.install import SetupError, interpreter, model_file, set_up
from peers.kinds import AVX2_ONLY, kind_of
from peers.report import report
from peers.rounds import measure
from peers.runner import ROOT, Model, Plan, Runner, Text
from peers.svg import chart
from peers.systems import LONG, SHORT, Peer, ours, peers

from stretto.core.env import read_env
from stretto.hub.aliases import aliases
from stretto.hub.models import resolve
from stretto.planner.measure import describe_machine

RECORDS, CHARTS = ROOT / "bench" / "records", ROOT / "docs"
WORKERS = Path(__file__).parent / "peers"
DEFAULT = "smollm2"


def main() -> None:
    """Set up, or measure, write and print."""
    home = read_env().cache_dir / "peers"
    known = [*peers(home, shipped="", kind="")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", nargs="*", choices=known, metavar="PEER", help="install these (default: all)")
    parser.add_argument("--torch-index", default="", help="package index with a CPU build of torch, for --setup")
    parser.add_argument("--peers", nargs="*", choices=known, default=known, metavar="PEER", help=", ".join(known))
    parser.add_argument("--model", default=DEFAULT, help="an alias or a GGUF file; other formats of it: smollm2 only")
    parser.add_argument("--level", choices=["avx2"], help="hold everyone to these instructions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loads", type=int, default=3, help="in how many of the rounds fresh processes are measured")
    parser.add_argument("--prompts", type=int, nargs="+", default=[SHORT, LONG], help="tokens before a first token")
    parser.add_argument("--streams", type=int, nargs="*", default=[8, 16, 32])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="one short round; nothing is written")
    parser.add_argument("--record", type=Path, help="where to write it; a chosen file gets no chart")
    args = parser.parse_args()
    end_on_signals()
    kind = args.level or kind_of(describe_machine()["features"])
    with ExitStack() as stack:
        keeper = stack.enter_context(Keeper())
        if args.setup is not None:
            there = peers(home / "files" / "vllm", shipped="", kind=kind)
            raise SystemExit(install([there[name] for name in args.setup or known], home, args.torch_index, keeper))
        compare(args, home, kind, keeper, stack)


def compare(args: argparse.Namespace, home: Path, kind: str, keeper: Keeper, stack: ExitStack) -> None:
    """Measure, print and write."""
    path = resolve(args.model, env=read_env())
    alias = aliases().get(args.model)
    model = Model.read(path, alias.title if alias else path.stem)
    short = {"rounds": 1, "loads": 1, "turns": 1, "new": 32, "streams": [n for n in args.streams if n != 16]}
    full = {"rounds": args.rounds, "loads": args.loads, "turns": 2, "new": 128, "streams": args.streams}
    plan = Plan(
        **(short if args.quick else full),
        prompts=args.prompts,
        threads=args.threads,
        variables=AVX2_ONLY if args.level == "avx2" else {},
    )
    there = peers(home / "files" / "vllm", shipped=model.shipped, kind=kind)
    text, absent = Text(model), dict[str, str]()
    found = find(args.peers, there, home, model, plan, keeper, absent, formats=args.model == DEFAULT)
    avx2_only = args.level == "avx2"
    runners = start(found, plan, model, text, keeper, stack, absent, avx2_only=avx2_only)
    bandwidth = measure(runners, plan, model, text, keeper, absent)
    every_system = {variant.system for peer in there.values() for variant in peer.variants}
    record, groups = report(runners, plan, model, kind, bandwidth, absent, every_system)
    show(record)
    if args.quick:
        return
    name = "" if args.model == DEFAULT else f"{Path(args.model).stem if not alias else args.model}-"
    target = args.record or RECORDS / f"cpu_peers-{name}{kind}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {target}", file=sys.stderr)
    if args.record is None and args.model == DEFAULT:
        machine = f"{kind}: {record['machine']['cpu']}, {record['machine']['cores']} cores"
        drawn = CHARTS / f"cpu_peers-{kind}.svg"
        drawn.write_text(chart(record["name"], f"{machine}, {record['date']}; line: spread of the runs", groups))
        print(f"wrote {drawn}", file=sys.stderr)


def show(record: dict[str, Any]) -> None:
    """Print every result, who is absent and who is not in the ratio."""
    for row in record["results"]:
        low, high = row["spread"]
        share = f"  {row['value'] / row['bound']:.0%} of {row['bound']:.4g}" if row["bound"] else ""
        print(f"{row['quantity']:66} {row['value']:>10.4g} {row['unit']:8} ({low:.4g} to {high:.4g}){share}")
    for name, about in record["machine"]["systems"].items():
        if "not_in_ratio" in about:
            print(f"not in the ratio: {name}: {about['not_in_ratio']}")
    for name, reason in record["machine"]["absent"].items():
        print(f"absent: {name}: {reason}")


def install(wanted: Sequence[Peer], home: Path, torch_index: str, keeper: Keeper) -> int:
    """Set up every peer wanted; returns how many could not be."""
    failures = 0
    for peer in wanted:
        try:
            print(f"{peer.name}: {set_up(peer, home, torch_index, keeper)}")
        except SetupError as error:
            failures += 1
            print(f"{peer.name}: {error}", file=sys.stderr)
    return failures


def find(
    names: Sequence[str],
    there: dict[str, Peer],
    home: Path,
    model: Model,
    plan: Plan,
    keeper: Keeper,
    absent: dict[str, str],
    *,
    formats: bool,
) -> Iterator[Runner]:
    """stretto and every variant of the peers named that is measured in anything; others go to `absent`.

    formats: whether the model is compared in other formats than its own, too.
    """
    wanted = plan.units()
    for variant in ours(plan.prompts):
        if (formats or variant.file == "gguf") and (not variant.quantities or set(variant.quantities) & set(wanted)):
            try:
                file = model_file(variant.file, model.path, home, keeper)
                yield Runner(variant, [sys.executable, str(WORKERS / variant.script)], file, ours=True)
            except SetupError as error:
                absent[variant.name] = str(error)
    for name, peer in there.items():
        if name not in names:
            absent[name] = "not asked for"
            continue
        for variant in peer.variants:
            if not (formats or variant.file in ("gguf", "hf")):
                continue
            try:
                python = interpreter(peer, home)
                file = model_file(variant.file, model.path, home, keeper)
                yield Runner(variant, [str(python), str(WORKERS / variant.script)], file, ours=False)
            except SetupError as error:
                absent[variant.name] = str(error)


if __name__ == "__main__":
    main()
