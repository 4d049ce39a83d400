"""Measuring this machine, and counting what a model costs: the two halves of every stated bound (core/costs.py).

Bandwidth is that of a *read-only* pass with all threads, because that is what decoding does to weights: a copy writes
too and would state a lower bound than the machine has. The buffer is larger than a cache and holds random bytes, so
neither caches nor pages that the system shares (a buffer of zeros may be one page) help.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stretto.core.costs import Machine, ModelCost
from stretto.core.page_format import PageFormat
from stretto.kernels.linear import Linear, native
from stretto.kernels.native.build import cpu_features
from stretto.kernels.native.library import Team
from stretto.models.lm import LM

BUFFER_BYTES = 96 << 20
CPU_FEATURES = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
_GEMM = (1024, 2048, 2048)  # rows, inputs, outputs: a prefill chunk of a small model


@dataclass(frozen=True, slots=True)
class Measured:
    """Runs of one measurement, in the unit of its name; what is quoted is the median."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest run."""
        return min(self.samples), max(self.samples)


def read_bandwidth(num_bytes: int = BUFFER_BYTES, repeat: int = 5) -> Measured:
    """Bytes/s of reading `num_bytes` of random fp32 once with torch's threads: the best of three read-only loops.

    Each loop is timed `repeat` times after a warm-up; the loop with the highest median is the one reported, since no
    single reduction of torch streams at full speed on every CPU.
    """
    buffer = torch.empty(num_bytes // 4).uniform_(-1.0, 1.0)
    matrix = buffer[: len(buffer) // 4096 * 4096].view(-1, 4096)
    vector = torch.rand(4096)
    loops: Sequence[tuple[int, Callable[[], object]]] = (
        (buffer.nbytes, buffer.amax),
        (buffer.nbytes, buffer.sum),
        (matrix.nbytes, lambda: matrix @ vector),
    )
    runs = [Measured(tuple(size / s for s in _seconds(loop, repeat))) for size, loop in loops]
    return max(runs, key=lambda measured: measured.median)


def gemm_rate(dtype: torch.dtype, repeat: int = 5) -> Measured:
    """Useful FLOP/s of a matrix product of prefill's shape in `dtype`, with torch's threads."""
    rows, d_in, d_out = _GEMM
    x = torch.rand(rows, d_in).to(dtype)
    weight = torch.rand(d_out, d_in).to(dtype)
    seconds = _seconds(lambda: torch.nn.functional.linear(x, weight), repeat)
    return Measured(tuple(2 * rows * d_in * d_out / s for s in seconds))


def measure_machine(dtype: torch.dtype, threads: Team | None = None) -> Machine:
    """Bandwidth and GEMM rate as the cost model wants them (a second or two): of torch, or of native threads."""
    bandwidth = read_bandwidth() if threads is None else native_bandwidth(threads)
    return Machine(bandwidth=bandwidth.median, flops=gemm_rate(dtype).median)


def native_bandwidth(threads: Team, num_bytes: int = BUFFER_BYTES, repeat: int = 5) -> Measured:
    """Bytes/s at which native threads read `num_bytes` of random memory once: what bounds a decode step of theirs."""
    buffer = torch.randint(0, 256, (num_bytes // 1024 * 1024,), dtype=torch.uint8)
    seconds = _seconds(lambda: native.read_bytes(buffer, threads), repeat)
    return Measured(tuple(buffer.nbytes / s for s in seconds))


def model_cost(lm: LM, kv: torch.dtype | PageFormat) -> ModelCost:
    """What a step of `lm` streams and multiplies, in its compute dtype; works on the meta device too.

    An embedding that is not the head too is looked up, not streamed. Work of attention over the context is left out
    (its bytes are counted): the bounds that follow stay bounds.
    """
    looked_up = 0 if lm.head is None else lm.embed.num_weights
    linears = {f"{path}.weight": module for path, module in lm.named_modules() if isinstance(module, Linear)}
    multiplied = sum(linear.num_weights for linear in linears.values()) - looked_up
    small = sum(p.nbytes for name, p in lm.named_parameters() if name not in linears)
    specs = [spec for layer in lm.state_specs for spec in layer]
    streamed = sum(linear.nbytes for linear in linears.values()) - (0 if lm.head is None else lm.embed.nbytes)
    return ModelCost(
        weight_bytes=streamed + small,
        params=multiplied,
        kv_bytes=sum(spec.nbytes(kv) for spec in specs if spec.kind == "paged"),
        state_bytes=sum(spec.nbytes(lm.dtype) for spec in specs if spec.kind != "paged"),
    )


def prefill_cost(lm: LM, kv: torch.dtype | PageFormat) -> ModelCost:
    """`model_cost` of prompt tokens: the head reads one row of a prompt, so it is no work per token."""
    cost = model_cost(lm, kv)
    return replace(cost, params=cost.params - (lm.head or lm.embed).num_weights)


def _seconds(work: Callable[[], object], repeat: int) -> list[float]:
    """Wall time of `repeat` calls after one that warms up. No gradients are recorded."""
    found = []
    with torch.inference_mode():
        work()
        for _ in range(repeat):
            started = time.perf_counter()
            work()
            found.append(time.perf_counter() - started)
    return found


def describe_machine() -> dict[str, Any]:
    """CPU, cores, threads, memory, versions: the `machine` of a benchmark record, and the doctor's first lines."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    fields = dict(
        (key.strip(), value.strip())
        for key, colon, value in (line.partition(":") for line in info.splitlines())
        if colon
    )
    known = cpu_features()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "memory_bytes": pages,
        "features": [name for name in CPU_FEATURES if name in known],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
