"""`stretto doctor`: versions, devices, kernels and why, measured rates, and what they allow for a model."""

import importlib.metadata
import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from stretto.cli._settings import said, settings
from stretto.cli._terminal import has_colour, note, paint, print_json
from stretto.core.costs import Machine, decode_bound, prefill_bound, verified_rows
from stretto.core.env import Env, process_variables, read_env
from stretto.core.errors import UserError, near
from stretto.core.option import argument, option, options_of
from stretto.core.settings import Configuration, Settings

if TYPE_CHECKING:
    from stretto.convert.model_file import ModelFile
    from stretto.kernels.native.library import Team
    from stretto.planner.measure import Measured

EXAMPLES = ("stretto doctor", "stretto doctor smollm2 --json")
PACKAGES = ("stretto", "torch", "numpy", "tokenizers", "jinja2", "rich", "triton", "huggingface_hub")
_PROMPT = 512
_STEP_CONTEXT, _STEP_RUNS = 128, 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of `stretto doctor`."""

    model: str | None = argument("also say what the measured rates allow for this model", default=None)
    build: bool = option("compile the native kernels now, also if they are there", default=False)
    json: bool = option("print one JSON object", default=False)
    configuration: Configuration = settings(draft="none", max_seqs=1)


def run(options: Options) -> int:
    """Print the findings; about five seconds, most of it measuring."""
    env = read_env()
    path = None
    if options.model is not None:
        from stretto.hub.models import resolve

        path = resolve(options.model, env=env)
    import torch

    from stretto.convert.model_file import open_model
    from stretto.llm import DTYPES
    from stretto.planner.measure import describe_machine, gemm_rate, native_bandwidth, read_bandwidth

    how = options.configuration.settings
    dtype = DTYPES[how.dtype]
    file = None if path is None else open_model(path)  # first: a bad file needs no measuring
    native, threads = native_kernels(env, how.threads, clean=options.build)
    note("measuring ...")
    bandwidth = read_bandwidth()
    rates = {name: gemm_rate(kind) for name, kind in (("bfloat16", torch.bfloat16), ("float32", torch.float32))}
    machine = Machine(bandwidth=bandwidth.median, flops=rates[how.dtype].median)
    report: dict[str, Any] = {
        "versions": versions(),
        "machine": describe_machine(),
        "settings": options.configuration.changes(),
        "environment": environment(env),
        "native kernels": native,
        "kernels": kernels(dtype),
        "measured": {
            **({} if threads is None else {"native read GB/s": _scaled(native_bandwidth(threads))}),
            "read GB/s": _figures(bandwidth.samples, bandwidth.median),
            **{f"{name} GFLOP/s": _figures(rate.samples, rate.median) for name, rate in rates.items()},
        },
    }
    if file is not None:
        report["bounds through torch"] = bounds(file, machine, dtype)
        report["one decode step"] = decode_step(file, how, env)
        report["next start"] = next_start(options.model or "", report["one decode step"], how, env, threads)
    if options.json:
        print_json(report)
    else:
        _print(report)
    return 0


def versions() -> dict[str, str]:
    """Installed versions of what matters here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def environment(env: Env) -> dict[str, str]:
    """What the variables of core/env.py say now, without passwords in addresses, and variables that nothing reads."""
    found = {field.name: str(getattr(env, field.name)) for field in fields(env)}
    found["cache"] = str(env.cache or "none")
    known = {one.variable for one in options_of(Settings)} | {field.metadata["variable"] for field in fields(env)}
    strange = sorted(name for name in process_variables() if name.startswith("STRETTO_") and name not in known)
    found["not read"] = ", ".join(f"{name} ({near(name, sorted(known))})" for name in strange) or "none"
    return found | {"wheel_index": re.sub(r"//[^/@]*@", "//***@", found["wheel_index"]) or "what pip is set up with"}


def native_kernels(env: Env, num_threads: int | None, *, clean: bool) -> "tuple[dict[str, Any], Team | None]":
    """What the native kernels were compiled for, or why they are not there; and the threads that run them."""
    from stretto.kernels.native.build import build, find_compiler, missing_features, supported_levels
    from stretto.llm.backend import thread_team

    levels = supported_levels()
    found: dict[str, Any] = {
        "this CPU runs": levels,
        "and cannot run": {name: "needs " + " ".join(flags) for name, flags in missing_features().items() if flags},
        "compiler": find_compiler(env.cxx) or "none found",
    }
    try:
        path = build(env.level or levels[0], env.cache_dir, compiler=env.cxx, note=note, clean=clean)
        threads = thread_team(env, num_threads)
    except UserError as problem:
        return {**found, "not available": f"{problem.error}: {problem.why}"}, None
    return {**found, "level": threads.library.level, "threads": threads.num_threads, "library": str(path)}, threads


def decode_step(file: "ModelFile", settings: Settings, env: Env) -> dict[str, Any]:
    """One token of one stream on the native kernels: its time, its bound, and what its operations take one by one."""
    import time

    from stretto.core.page_format import page_format
    from stretto.core.sampling import Sampling
    from stretto.engine.abilities import where_parts_run
    from stretto.llm import LLM
    from stretto.planner.measure import model_cost, native_bandwidth
    from stretto.runner.staircase import row_seconds

    context = settings.context or min(2 * _STEP_CONTEXT, file.config.context)
    llm = LLM(file.path, settings, context=context, env=replace(env, no_programs=True))
    recording, threads = llm.engine.runner.recording, llm.backend_choice.threads
    if recording is None or threads is None:
        return {"runs on": "torch", "why": str(llm.backend_choice.why)}
    llm.generate([[1] * min(_STEP_CONTEXT, context // 2)], Sampling(temperature=0.0, max_tokens=2, ignore_eos=True))
    runs = []
    for _ in range(_STEP_RUNS):
        started = time.perf_counter()
        recording.operations.run()
        runs.append(time.perf_counter() - started)
    lm = llm.engine.runner.lm
    weights = model_cost(lm, page_format(llm.engine.runner.sizes.kv)).weight_bytes
    bound = weights / native_bandwidth(threads, num_bytes=weights).median
    median = sorted(runs)[len(runs) // 2]
    parts = {f"  {name} ms": round(1e3 * seconds, 3) for name, seconds in recording.operations.profile().items()}
    return {
        "runs on": llm.backend_choice.name,
        "bytes streamed": weights,
        "bound ms": round(1e3 * bound, 3),
        "achieved ms": round(1e3 * median, 3),
        "share of the bound": f"{bound / median:.0%}",
        "layers": where_parts_run(lm, recording.host_operations),
        "operations": len(recording.operations.names),
        "of these in Python": recording.host_operations,
        **parts,
        **{f"{rows} rows": said for rows, said in verified_rows(row_seconds(llm.engine.runner)).items()},
    }


def next_start(
    model: str, step: dict[str, Any], settings: Settings, env: Env, threads: "Team | None"
) -> dict[str, Any]:
    """Whether `stretto run` finds what an earlier run kept, and where; else why it records the model, with torch."""
    from stretto.hub.models import resolve
    from stretto.llm.loading import look_up

    if threads is None or step["runs on"] == "torch":
        return {"torch": "needed: it runs the model"}
    if step["of these in Python"]:
        return {"torch": f"needed in every step: Python computes {', '.join(step['of these in Python'])}"}
    if env.no_programs:
        return {"torch": "needed: STRETTO_NO_PROGRAMS is set"}
    usual = settings.replace(max_seqs=Settings().max_seqs)  # the doctor itself runs one sequence
    found = look_up(resolve(model, env=env), usual, env.cache_dir, threads)
    if found.kept is None:
        return {"torch": f"needed: {found.why}; the first `stretto run` keeps what later ones need"}
    return {"torch": "not needed", "kept": str(found.place)}


def kernels(dtype: Any) -> dict[str, dict[str, str]]:
    """For every operation with backends: which one runs on small CPU tensors of `dtype`, and why not the others."""
    import torch

    from stretto.kernels.linear.onednn import cannot_pack, prepack
    from stretto.kernels.lora import LoraSite, LoraTable
    from stretto.kernels.pick import BACKENDS, explain

    heads, rows = torch.zeros(4, 2, 16, dtype=dtype), torch.zeros(4, 32, dtype=dtype)
    held = rows if cannot_pack(rows) else prepack(rows)
    arguments = {
        "linear": (rows, held),
        "lora": (rows, LoraSite(LoraTable({}, 1, 1), 0, 32, ())),
        "mlp": (rows, held, held),
        "rope": (heads,),
        "attention": (heads, heads, heads),
        "glr": (heads, heads, heads),
        "dscan": (rows, rows),
        "short_conv": (rows, torch.zeros(32, 4, dtype=dtype)),
        "rmsnorm": (rows,),
        "layernorm": (rows,),
        "gates": (rows,),
        "fftconv": (rows, torch.zeros(32, 8, dtype=dtype)),
        "rowwise": (rows,),
        "sampling": (rows, None),
    }
    found = {}
    for op, args in arguments.items():
        reasons = explain(op, BACKENDS, *args)
        chosen = next((name for name, reason in reasons if reason is None), "none")
        others = "; ".join(f"{name}: {reason or 'slower'}" for name, reason in reasons if name != chosen)
        found[op] = {"runs on": chosen, "not on": others}
    return found


def bounds(file: "ModelFile", machine: Machine, dtype: Any) -> dict[str, float]:
    """What one stream cannot exceed on this machine, from measured rates and the bytes a step streams."""
    import torch

    from stretto.models.lm import LM
    from stretto.planner.measure import model_cost, prefill_cost

    with torch.device("meta"):
        lm = LM(file.config).cast(dtype)
    cost = model_cost(lm, dtype)
    stored = sum(file.held(name).nbytes for name in file.tensors.names())
    return {
        "bytes per token": cost.weight_bytes,
        "bytes as stored": stored,
        "cache bytes per token": cost.kv_bytes,
        "decode tokens/s": decode_bound(machine, cost),
        f"decode tokens/s at {_PROMPT}": decode_bound(machine, cost, _PROMPT),
        f"prefill tokens/s of {_PROMPT}": prefill_bound(machine, prefill_cost(lm, dtype), _PROMPT),
    }


def _scaled(measured: "Measured") -> dict[str, Any]:
    return _figures(measured.samples, measured.median)


def _figures(samples: tuple[float, ...], median: float) -> dict[str, Any]:
    scaled = [round(sample / 1e9, 2) for sample in samples]
    return {"median": round(median / 1e9, 2), "lowest": min(scaled), "highest": max(scaled), "runs": len(scaled)}


def _print(report: dict[str, Any]) -> None:
    import sys

    for heading, values in (report | {"settings": {"not the defaults": said(report["settings"])}}).items():
        print(paint(heading, "bold", has_colour(sys.stdout)))
        width = max(len(name) for name in values)
        for name, value in values.items():
            print(f"  {name.ljust(width)}  {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if value is None:
        return "none"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
