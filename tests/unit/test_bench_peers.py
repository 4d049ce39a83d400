"""The comparison with other systems, as far as nothing is measured: who is ended, kinds of CPU, what is quoted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from peers.check import start
from peers.client import Keeper, Worker, WorkerError, one_process, without_folders
from peers.kinds import AVX2_ONLY, KINDS, kind_of
from peers.report import report
from peers.runner import Model, Plan, Runner, Text, environment_of
from peers.systems import Variant, ours, peers

ROOT = Path(__file__).parents[2]
RECORDS = sorted((ROOT / "bench" / "records").glob("cpu_peers-*.json"))

# A worker that starts another process, and says who they are.
FAKE = """
import json, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
for line in sys.stdin:
    op = json.loads(line)["op"]
    wrong = {"error": "no\\nsuch thing in " + "/a" * 300 + "/b"}
    print(json.dumps({"pids": [os.getpid(), child.pid]} if op == "pids" else wrong), flush=True)
"""
# The benchmark with its own beginning and end, and those workers instead of real ones: the first of them is stopped.
BENCHMARK = f"""
import json, sys, time
sys.argv = ["cpu_peers.py", "--quick"]
import cpu_peers
from peers.client import Worker

def compare(args, home, kind, keeper, stack):
    workers = [Worker([sys.executable, "-S", "-c", {FAKE!r}], {{}}, "fake", keeper) for _ in range(2)]
    for worker in workers:
        stack.push(worker.__exit__)
    pids = [worker.ask(op="pids")["pids"] for worker in workers]
    workers[0].pause()
    print(json.dumps([*pids[0], *pids[1], keeper._process.pid]), flush=True)
    time.sleep(600)

cpu_peers.compare = compare
cpu_peers.main()
"""


def state_of(pid: int) -> str:
    """The letter of its state; "" once it has ended, waited for or not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else state


def wait(is_so: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Until it is so; a failure if it never is."""
    until = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_the_workers_end_with_the_benchmark(number: signal.Signals, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bench")}
    benchmark = subprocess.Popen(
        [sys.executable, "-c", BENCHMARK],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert benchmark.stdout is not None
    pids: list[int] = []
    try:
        pids = json.loads(benchmark.stdout.readline())
        wait(lambda: [state_of(pid) for pid in pids[:2]] == ["T", "T"])  # the system stops them when it comes to it
        assert all(state_of(pid) not in ("", "T") for pid in pids[2:])
        benchmark.send_signal(number)
        code = benchmark.wait(60)
        assert code == {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[number]
        wait(lambda: not any(state_of(pid) for pid in pids))
    finally:
        benchmark.kill()
        for pid in pids:
            if state_of(pid):
                os.kill(pid, signal.SIGKILL)


def test_a_worker_is_closed_with_its_children_and_says_why_it_fails() -> None:
    with Keeper() as keeper:
        with Worker([sys.executable, "-S", "-c", FAKE], {}, "fake", keeper) as worker:
            pids = worker.ask(op="pids")["pids"]
            with pytest.raises(WorkerError, match=r"^no such thing in b$"):
                worker.ask(op="else")
            assert worker.peak_bytes() > 4 << 20
        wait(lambda: not any(state_of(pid) for pid in pids))
        dying = Worker([sys.executable, "-S", "-c", "import sys; sys.exit('no such library')"], {}, "x", keeper)
        with dying, pytest.raises(WorkerError, match="ended with 1: no such library"):
            dying.ask(op="load")


def test_a_process_is_timed_apart_from_this_one() -> None:
    """Its peak is its own, though this process is large; a failure is an error with what was said last."""
    python = [sys.executable, "-S", "-E", "-c"]
    with Keeper() as keeper:
        seconds, peak = one_process([*python, "import time; time.sleep(0.2)"], {}, keeper)
        assert seconds > 0.2 and peak < 40 << 20
        _, more = one_process([*python, "x = bytearray(50 << 20)"], {}, keeper)
        assert more > 50 << 20
        with pytest.raises(WorkerError, match="ended with 3: lost"):
            one_process([*python, "import sys; print('lost', file=sys.stderr); sys.exit(3)"], {}, keeper)
        variable = "import os, sys; sys.exit(os.environ['A'] != 'b c')"
        one_process([*python, variable], {"A": "b c"}, keeper)


# -- kinds of CPU ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "kind"),
    [
        ([], "generic"),
        (["avx2"], "avx2"),
        (["avx2", "avx_vnni"], "avx_vnni"),
        (["avx2", "avx512f"], "avx512"),
        (["avx2", "avx512f", "avx512_vnni"], "avx512_vnni"),
        (["avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"], "avx512_vnni"),
        (["avx2", "avx512f", "avx512_vnni", "amx_tile", "amx_bf16"], "avx512_vnni"),
        (["avx2", "avx512f", "avx512_vnni", "amx_tile", "amx_int8"], "amx"),
    ],
)
def test_the_kind_is_the_best_that_a_cpu_has(features: list[str], kind: str) -> None:
    assert kind_of(features) == kind and kind in KINDS


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_records_are_named_by_their_kind(path: Path) -> None:
    """The kind of a record is that of its CPU, or the one that everybody was held to."""
    record = json.loads(path.read_text(encoding="utf-8"))
    machine, words = record["machine"], record["command"].split()
    level = words[words.index("--level") + 1] if "--level" in words else None
    assert machine["kind"] == (level or kind_of(machine["features"])) and path.stem.endswith(f"-{machine['kind']}")


# -- what is compared --------------------------------------------------------------------------------------------------


def test_every_peer_has_its_environment_and_reads_the_shipped_file() -> None:
    """The model's own format is read as it is, and never made a second time; builds for two kinds do not meet."""
    for shipped in ("Q4_1", "Q4_0", "Q4_K_M"):
        found = peers(Path("cache"), shipped=shipped, kind="avx2")
        for peer in found.values():
            names = [variant.name for variant in peer.variants]
            assert len(set(names)) == len(names) and shipped not in [variant.file for variant in peer.variants]
            assert any(variant.file in ("gguf", "hf") for variant in peer.variants)
    other = peers(Path("cache"), shipped="Q4_1", kind="avx512_vnni")
    assert found["llama.cpp"].folder != other["llama.cpp"].folder
    assert "AVX512=OFF" in found["llama.cpp"].steps[0].variables["CMAKE_ARGS"]
    assert len({peer.folder for peer in found.values()}) == len(found)


def runner(name: str, model: Path, is_ours: bool, samples: dict[str, list[float]], label: str = "") -> Runner:
    about: dict[str, Any] = {"version": "1", "settings": {}, "leading_tokens_agree": []}
    about |= {"next_tokens_agree": 1.0, "first_tokens_of_streams_agree": 1.0}
    variant = Variant(system=name, label=label, script="", file="gguf")
    return Runner(variant, [], model, is_ours, about=about, samples=samples)


def test_a_record_has_the_best_form_of_each_system_and_who_is_outside() -> None:
    model = Model(path=Path("m"), title="Tiny Q4", shipped="Q4", matrix_bytes=10, kv_bytes=1)
    plan = Plan(
        rounds=1, loads=1, turns=1, new=2, streams=(), prompts=(32,), threads=1, variables={}
    )  # fmt: skip
    first = "first token after 32"
    runners = [
        runner("stretto", model.path, True, {"decode x1": [4.0, 6.0], first: [10.0]}),
        runner("a", model.path, False, {"decode x1": [2.0], first: [20.0]}, "slow"),
        runner("a", model.path, False, {"decode x1": [3.0], first: [5.0]}, "fast"),
        runner("b", model.path, False, {"decode x1": [50.0]}),
    ]
    runners[-1].outside = "uses more"
    reasons = {"c x": "OSError: /usr/lib/x/libc.so.6: not found (by /opt/a b/lib.so)"}
    record, groups = report(runners, plan, model, "avx2", [100.0, 300.0], reasons, {"a", "b", "c"})
    rows = {row["quantity"]: row["value"] for row in record["results"]}
    assert rows == {
        "decode x1: stretto": 5.0, "decode x1: a fast": 3.0, "decode x1: b": 50.0, f"{first}: stretto": 10.0,
        f"{first}: a fast": 5.0,
    }  # fmt: skip
    assert record["results"][0]["bound"] == 20.0 and record["name"] == "Tiny Q4 on a CPU, peers"
    machine = record["machine"]
    assert machine["kind"] == "avx2" and machine["systems"]["b"]["not_in_ratio"] == "uses more"
    assert "not_in_ratio" not in machine["systems"]["a fast"]
    assert [bar.name for bar in groups[0].bars] == ["b", "stretto", "a"]
    some, _ = report(runners[:2], plan, model, "avx2", [100.0], {"b": "not asked for"}, {"a", "b", "c"})
    assert some["name"] == "Tiny Q4 on a CPU, a", "a record of fewer names them"


def test_a_record_names_no_folder_of_this_machine() -> None:
    text = "RuntimeError: Failed to load /srv/x/.cache/lib/liba.so: '/lib/x86/libc.so.6': version `G_2' (by /a/b)"
    assert without_folders(text) == "RuntimeError: Failed to load liba.so: 'libc.so.6': version `G_2' (by b)"
    assert without_folders("1 / 2, tokens/s, https://x.org/y") == "1 / 2, tokens/s, https://x.org/y"


# A worker that says the same token always, which its variables name, and does not start under others.
SAYS = """
import json, os, sys
if os.environ.get("REFUSES", "") in os.environ:
    sys.exit("cannot")
token = int(os.environ["TOKEN"])
for line in sys.stdin:
    ask = json.loads(line)
    answer = {
        "load": lambda: {"version": "1", "settings": {}},
        "next": lambda: {"token": token},
        "decode": lambda: {"tokens": [token] * ask["new"]},
        "batch": lambda: {"tokens": [[token]] * len(ask["prompts"])},
    }
    print(json.dumps(answer[ask["op"]]()), flush=True)
"""


class Numbers(Text):
    """A text without a model."""

    def __init__(self) -> None:
        self.ids = list(range(2000))


def test_who_is_quoted_and_who_is_outside_the_ratio() -> None:
    """One that says something else is not quoted; one that cannot be held to a level is shown without it."""
    model = Model(path=Path("m"), title="Tiny", shipped="Q4", matrix_bytes=10, kv_bytes=1)
    plan = Plan(
        rounds=1, loads=1, turns=1, new=2, streams=(2,), prompts=(32,), threads=1, variables={**AVX2_ONLY, "LEVEL": "x"}
    )  # fmt: skip

    def fake(name: str, is_ours: bool = False, **variables: str) -> Runner:
        variant = Variant(system=name, script="", file="gguf", variables=variables)
        return Runner(variant, [sys.executable, "-S", "-c", SAYS], Path("m"), is_ours)

    found = [
        fake("stretto", True, TOKEN="5"),
        fake("same", TOKEN="5"),
        fake("other", TOKEN="6"),
        fake("free", TOKEN="5", REFUSES="LEVEL"),
        fake("broken", TOKEN="5", REFUSES="PATH"),
    ]
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        keeper = stack.enter_context(Keeper())
        ready = start(iter(found), plan, model, Numbers(), keeper, stack, absent, avx2_only=True)
        assert [runner.variant.name for runner in ready] == ["stretto", "same", "free"]
        assert [runner.outside for runner in ready[:2]] == [None, None]
        assert "held to AVX2: the process ended with 1: cannot" in str(ready[2].outside)
        assert environment_of(ready[2], plan).get("LEVEL") is None and environment_of(ready[1], plan)["LEVEL"] == "x"
    assert absent["other"] == "not quoted: only 0% of its tokens after a text are those of stretto"
    assert absent["broken"] == "the process ended with 1: cannot"
    refuses = [fake("stretto", True, TOKEN="5", REFUSES="LEVEL")]
    with Keeper() as keeper, ExitStack() as stack, pytest.raises(SystemExit, match="stretto: the process ended"):
        start(iter(refuses), plan, model, Numbers(), keeper, stack, {}, avx2_only=True)


def test_int8_prompts_are_measured_in_the_lengths_of_the_plan() -> None:
    (coarse,) = [variant for variant in ours((512,)) if "int8" in variant.name]
    assert coarse.quantities == ["first token after 512"]
