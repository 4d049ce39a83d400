"""Memory that is there, sizes as people write them, and the context that follows from both."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import CONFIG, Run, answer, write_tiny
from hypothesis import given
from hypothesis import strategies as st

from stretto import LLM, Sampling
from stretto.cache.pools import Pools, layout_of
from stretto.cache.sizes import longest_context, sequence_bytes, size_pools
from stretto.convert.model_file import open_model
from stretto.core.errors import FitError, UserError
from stretto.core.memory import available_memory, parse_size, show_size
from stretto.core.page_format import Plain
from stretto.core.settings import Settings
from stretto.core.tree import MAX_TREE_ROWS
from stretto.llm import sizes
from stretto.llm.facts import facts_of, weight_bytes
from stretto.llm.sizes import SHARE, choose_sizes
from stretto.models.lm import LM

GIB = 1 << 30
BF16 = Plain(torch.bfloat16)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\n"}
UNIFIED = "sys/fs/cgroup/jobs/one/"
MACHINES: dict[str, tuple[dict[str, str], int]] = {
    "no group": (MACHINE, 8 * GIB),
    "unified, no limit": (
        MACHINE
        | {"proc/self/cgroup": "0::/jobs/one\n", UNIFIED + "memory.max": "max\n", UNIFIED + "memory.current": "5"},
        8 * GIB,
    ),
    "unified": (
        MACHINE
        | {
            "proc/self/cgroup": "0::/jobs/one\n",
            UNIFIED + "memory.max": f"{3 * GIB}\n",
            UNIFIED + "memory.current": f"{2 * GIB}\n",
            UNIFIED + "memory.stat": f"anon {GIB}\ninactive_file {GIB // 2}\n",
        },
        GIB + GIB // 2,
    ),
    "a group above": (
        MACHINE
        | {
            "proc/self/cgroup": "0::/jobs/one\n",
            UNIFIED + "memory.max": "max\n",
            UNIFIED + "memory.current": "5\n",
            "sys/fs/cgroup/jobs/memory.max": f"{GIB}\n",
            "sys/fs/cgroup/jobs/memory.current": "0\n",
        },
        GIB,
    ),
    "a container that sees its group as the root": (
        MACHINE
        | {
            "proc/self/cgroup": "0::/../host/path\n",
            "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{GIB}\n",
        },
        GIB,
    ),
    "version 1": (
        MACHINE
        | {
            "proc/self/cgroup": "9:name=systemd:/\n4:memory:/docker/1\n0::/\n",
            "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/docker/1/memory.stat": f"cache 5\ntotal_inactive_file {GIB // 4}\n",
        },
        3 * GIB + GIB // 4,
    ),
    "used up": (
        MACHINE
        | {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{GIB}\n",
            "sys/fs/cgroup/memory.current": f"{2 * GIB}\n",
        },
        0,
    ),
}


@pytest.mark.parametrize("case", MACHINES)
def test_available_memory_is_the_least_of_machine_and_groups(case: str, tmp_path: Path) -> None:
    files, want = MACHINES[case]
    assert available_memory(tree(tmp_path, files)) == want


def test_a_machine_that_says_nothing_has_its_physical_memory(tmp_path: Path) -> None:
    assert available_memory(tmp_path) >= GIB
    assert 0 < available_memory() <= available_memory(tmp_path)


def test_a_limit_on_addresses_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (GIB, GIB))
    monkeypatch.setattr("resource.getpagesize", lambda: 4096)
    assert available_memory(tree(tmp_path, MACHINE | {"proc/self/statm": "1024 5 5 5\n"})) == GIB - 1024 * 4096


def test_sizes_as_people_write_them() -> None:
    good = {"8GiB": 8 * GIB, "8G": 8 * GIB, "8g": 8 * GIB, "8GB": 8 * 10**9, "1.5 GiB": 3 * GIB // 2, "512M": 1 << 29}
    good |= {"100": 100, "2k": 2048, "1T": 1 << 40, "7b": 7}
    for text, want in good.items():
        assert parse_size(text, "--mem") == want, text
    for text in ("", "GiB", "-1G", "8X", "1e9", "0", "nan", "8 G iB"):
        with pytest.raises(UserError, match="--mem"):
            parse_size(text, "--mem")
    assert show_size(2 * GIB + GIB // 4) == "2.25 GiB" and show_size(5) == "5 bytes"


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """The tiny checkpoint, made for a context whose cache takes 2 GiB."""
    write_tiny(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 1 << 24}))
    return tmp_path


PER_TOKEN = 2 * 2 * 2 * 8 * 2  # layers, keys and values, heads, entries, bytes of bf16
Machine = Callable[[int], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Pretends that so many bytes are free."""
    return lambda there: monkeypatch.setattr(sizes, "available_memory", lambda: there)


def test_the_default_context_is_the_largest_whose_cache_fits_when_full(long: Path, machine: Machine) -> None:
    file = open_model(long)
    with torch.device("meta"):
        lm = LM(file.config)
    for there in (GIB // 4, GIB, 2 * GIB):
        machine(there)
        found, note = choose_sizes(facts_of(file, Settings(), native=False), Settings())
        weights = weight_bytes(file, lm, torch.bfloat16, native=False)
        budget = SHARE * there - weights - 4 * 512 * (258 + 16 * 32)
        full = sequence_bytes(layout_of(lm.state_specs, BF16, torch.bfloat16), found.context + MAX_TREE_ROWS, 512)
        assert budget - 32 * PER_TOKEN < full <= budget  # one more page would not fit
        assert note is not None and "--ctx" in note and "--mem" in note and f"{found.context:,}" in note
    machine(8 * GIB)
    found, note = choose_sizes(facts_of(file, Settings(), native=False), Settings())
    assert (found.context, note) == (1 << 24, None)


def test_what_weights_take_is_what_is_there_after_loading(tmp_path: Path) -> None:
    file = open_model(write_tiny(tmp_path))
    with torch.device("meta"):
        lm = LM(file.config)
    params = sum(p.numel() for p in lm.parameters())
    head = 258 * 32
    assert weight_bytes(file, lm, torch.bfloat16, native=False) == 2 * (params + head)
    assert weight_bytes(file, lm, torch.bfloat16, native=True) == 4 * params  # the file is fp32


def test_refusals_name_both_flags_and_sizes_that_work(long: Path, machine: Machine) -> None:
    file = open_model(long)
    machine(GIB)
    with pytest.raises(FitError, match=r"16,777,216 tokens needs 2\.00 GiB") as caught:
        choose_sizes(facts_of(file, Settings(context=1 << 24), native=False), Settings(context=1 << 24))
    flag, fits = str(caught.value.try_).split(",")[0].split()
    assert flag == "--ctx" and "--mem" in str(caught.value.try_) and "1.00 GiB" in str(caught.value.why)
    assert choose_sizes(facts_of(file, Settings(context=int(fits)), native=False), Settings(context=int(fits)))[
        0
    ].context == int(fits)
    with pytest.raises(FitError):
        choose_sizes(facts_of(file, Settings(context=int(fits) + 1), native=False), Settings(context=int(fits) + 1))
    asked = Settings(context=1 << 24, memory=str(caught.value.try_).split("--mem ")[1].split()[0])
    assert choose_sizes(facts_of(file, asked, native=False), asked)[0].context == 1 << 24
    machine(1 << 20)
    with pytest.raises(FitError, match="--mem") as caught:
        choose_sizes(facts_of(file, Settings(), native=False), Settings())
    assert "--ctx" in str(caught.value.try_)


def test_sequences_share_the_cache_and_one_may_use_it_all(long: Path, machine: Machine) -> None:
    machine(GIB // 4)
    llm = LLM(long, backend="torch", max_seqs=3, note=lambda line: None)
    context = llm.engine.runner.sizes.context
    cache = llm.engine.runner.cache
    assert cache.free_blocks * 16 >= context + MAX_TREE_ROWS
    assert llm.engine.runner.cache.pools.nbytes <= llm.engine.runner.sizes.memory_bytes
    results = llm.generate([[1, 2, 3]] * 5, Sampling(temperature=0, max_tokens=3))
    assert len({r.token_ids for r in results}) == 1


def test_the_python_api_warns_through_logging(
    long: Path, machine: Machine, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    machine(GIB // 4)
    LLM(long, backend="torch")
    assert any("--ctx" in record.message for record in caplog.records)


def test_long_contexts_start_without_flags(long: Path, machine: Machine, cli: Run) -> None:
    machine(GIB // 4)
    code, out, err = cli("run", long, "--raw", "abc", "-n", "4", "--temp", "0", "--json")
    assert code == 0 and "context:" in err and len(json.loads(out)["token_ids"]) == 4
    short = answer(cli, long, "--raw", "abc", "-n", "4", "--temp", "0", "--ctx", "64")
    assert short["token_ids"] == json.loads(out)["token_ids"]
    code, out, err = cli("run", long, "--raw", "abc", "--ctx", str(1 << 24))
    assert code == 4 and "--ctx" in err and "--mem" in err
    code, out, err = cli("run", long, "--raw", "abc", "-n", "2", "--mem", "8MiB", "--json")
    assert code == 0 and "8.00 MiB" in err
    code, out, err = cli("run", long, "--raw", "abc", "--mem", "lots")
    assert code == 2 and "--mem" in err


@given(st.integers(0, 1 << 34), st.integers(1, 5), st.integers(0, 3))
def test_longest_context_is_what_size_pools_takes(memory: int, paged: int, slots: int) -> None:
    from stretto.core.state import StateSpec

    specs = [
        [StateSpec(name=f"p{i}", shape=(2, 8), kind="paged") for i in range(paged)]
        + [StateSpec(name=f"s{i}", shape=(4, 4), kind="slot") for i in range(slots)]
    ]
    longest = longest_context(layout_of(specs, BF16, torch.float32), 64, memory)
    if longest:
        fits = size_pools(
            layout_of(specs, BF16, torch.float32), context=longest, max_seqs=1, max_rows=64, memory_bytes=memory
        )
        pools = Pools(
            specs,
            num_blocks=fits.num_blocks,
            num_slots=fits.num_slots,
            kv=BF16,
            state_dtype=torch.float32,
            device="meta",
        )
        assert pools.nbytes == sequence_bytes(layout_of(specs, BF16, torch.float32), longest, 64) <= memory
    with pytest.raises(FitError):
        size_pools(
            layout_of(specs, BF16, torch.float32), context=longest + 1, max_seqs=1, max_rows=64, memory_bytes=memory
        )
