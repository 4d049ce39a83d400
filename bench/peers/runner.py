"""A variant with its worker and samples, the plan of a benchmark, and the text that everyone reads."""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gguf
from peers.client import Keeper, Worker
from peers.systems import DECODE, REPEATS, VERIFY, Variant

from stretto.convert.model_file import open_model
from stretto.llm import open_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CONTEXT, MOST_STREAMS, KV_TOKENS = 2048, 32, 8192  # what everyone makes room for
PREFIXES, PREFIX = 24, 48  # of the check: how many, how long
LOAD, START, START_MEMORY = "load", "process start to first token", "peak memory of that process"
MEMORY_ONE, MEMORY_MANY = "peak memory x1", f"peak memory x{MOST_STREAMS}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The model file and what is read off it. shipped: its format. kv_bytes: of one token, in 16 bits."""

    path: Path
    title: str
    shipped: str
    matrix_bytes: int
    kv_bytes: int

    @staticmethod
    def read(path: Path, title: str) -> "Model":
        """From a GGUF file."""
        file = gguf.GGUFReader(path)

        def of(key: str, default: int | None = None) -> int:
            found = file.get_field(key)
            return default if found is None and default is not None else int(found.contents())

        arch = file.get_field("general.architecture").contents()
        heads = of(f"{arch}.attention.head_count")
        head = of(f"{arch}.attention.key_length", of(f"{arch}.embedding_length") // heads)
        kv = 4 * of(f"{arch}.block_count") * of(f"{arch}.attention.head_count_kv", heads) * head
        shipped = gguf.LlamaFileType(of("general.file_type")).name.removeprefix("MOSTLY_")
        return Model(path=path, title=title, shipped=shipped, matrix_bytes=matrix_bytes(path), kv_bytes=kv)


@cache
def matrix_bytes(path: Path) -> int:
    """Bytes of the matrices in a GGUF file that decoding one token reads: an embedding that is not the head too is
    looked up, not read."""
    tensors = [tensor for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) > 1]
    looked_up = "token_embd.weight" if any(tensor.name == "output.weight" for tensor in tensors) else ""
    return sum(int(tensor.n_bytes) for tensor in tensors if tensor.name != looked_up)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is measured. loads: fresh processes per system; turns: repetitions of a single stream in a round.

    prompts: lengths whose first token is timed. variables: environment of every worker.
    """

    rounds: int
    loads: int
    turns: int
    new: int
    streams: Sequence[int]
    prompts: Sequence[int]
    threads: int
    variables: Mapping[str, str]

    def units(self) -> dict[str, str]:
        """Every quantity and its unit, in the order of the record."""
        firsts = {f"first token after {length}": "ms" for length in self.prompts}
        return {
            DECODE: "tokens/s", REPEATS: "tokens/s", **{f"total x{n}": "tokens/s" for n in self.streams}, **firsts,
            VERIFY: "passes", LOAD: "s", START: "s", START_MEMORY: "MB", MEMORY_ONE: "MB", MEMORY_MANY: "MB",
        }  # fmt: skip


@dataclass(slots=True)
class Runner:
    """A variant, its command and, once it has passed the check, its worker and samples.

    held: whether its processes run under the variables of the plan. outside: why it is not in the ratio, if it is not.
    """

    variant: Variant
    command: list[str]
    model: Path
    ours: bool
    worker: Worker | None = None
    about: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    held: bool = True
    outside: str | None = None

    def wants(self, quantity: str) -> bool:
        """Whether it is measured in this."""
        if quantity == VERIFY and not self.variant.times_rows:
            return False
        if (quantity.startswith("total ") or quantity == MEMORY_MANY) and not self.variant.batches:
            return False
        return not self.variant.quantities or quantity in self.variant.quantities


def options_of(runner: Runner, model: Model) -> dict[str, Any]:
    """What its worker is told when it loads."""
    sizes = {"context": CONTEXT, "streams": MOST_STREAMS, "batch_tokens": KV_TOKENS}
    return {**sizes, "kv_bytes": KV_TOKENS * model.kv_bytes, **runner.variant.options}


def environment_of(runner: Runner, plan: Plan) -> dict[str, str]:
    """Environment variables of its processes."""
    threads = {name: str(plan.threads) for name in ("OMP_NUM_THREADS", "STRETTO_THREADS")}
    return {**threads, **(plan.variables if runner.held else {}), **runner.variant.variables}


def launch(runner: Runner, plan: Plan, model: Model, keeper: Keeper) -> tuple[Worker, dict[str, Any], float]:
    """A fresh worker that has loaded its model, its answer, and the seconds from starting the process."""
    worker = Worker(runner.command, environment_of(runner, plan), runner.variant.name, keeper)
    try:
        options = options_of(runner, model)
        about = worker.ask(op="load", model=str(runner.model), threads=plan.threads, options=options)
    except BaseException:
        worker.close(gently=False)
        raise
    return worker, about, time.perf_counter() - worker.started


def one_token(runner: Runner, plan: Plan, model: Model, text: "Text") -> list[str]:
    """The command of a process that says one token after the opening of the text: for stretto, that of a user."""
    if runner.ours:
        words = [sys.executable, "-m", "stretto", "run", str(runner.model), text.opening, "--raw", "--no-stdin"]
        return [*words, "-n", "1", "--temp", "0", "--ctx", str(CONTEXT), "--threads", str(plan.threads)]
    request = {"model": str(runner.model), "threads": plan.threads, "options": options_of(runner, model)}
    return [*runner.command, "once", json.dumps(request | {"ids": text.opening_ids})]


class Text:
    """Token ids of real text, the same for everyone: the license of this project."""

    def __init__(self, model: Model) -> None:
        tokenizer = open_tokenizer(open_model(model.path))
        words = (ROOT / "LICENSE").read_text(encoding="utf-8").split()
        self.ids = tokenizer.encode(" ".join(words))
        self.decode = tokenizer.decode
        self.again = tokenizer.encode("\n\nThe same text once more:\n\n")
        self.opening = " ".join(words[:24])
        self.opening_ids = tokenizer.encode(self.opening)

    def part(self, length: int, offset: int) -> list[int]:
        """`length` ids from an offset that wraps around."""
        start = offset % (len(self.ids) - length)
        return self.ids[start : start + length]

    def repeated(self, offset: int) -> list[int]:
        """A passage, a request to repeat it, and its beginning."""
        passage = self.part(200, offset)
        return [*passage, *self.again, *passage[:24]]
