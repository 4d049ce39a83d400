"""`stretto bench`: prefill and decode speed of one model, as medians and as shares of what this machine allows."""

import json
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stretto.cli._flags import groups_of
from stretto.cli._settings import settings
from stretto.cli._terminal import note, print_json, progress, table
from stretto.cli._text import PARAGRAPH
from stretto.core.costs import Machine, ModelCost, prefill_bound, step_seconds, verified_rows
from stretto.core.env import read_env
from stretto.core.errors import UserError
from stretto.core.option import argument, option, options_of
from stretto.core.sampling import Sampling
from stretto.core.settings import Configuration

if TYPE_CHECKING:
    from stretto.llm import LLM

EXAMPLES = ("stretto bench smollm2", "stretto bench smollm2 --prompt-tokens 512 --streams 1,8 --record speed.json")
_DECODE_PROMPT = 32  # tokens before decoding is measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of `stretto bench`."""

    model: str = argument("an alias such as smollm2, a .gguf file or a checkpoint directory")
    prompt_tokens: tuple[int, ...] = option("lengths of prompts", default=(128, 512, 1024), metavar="N,...", low=1)
    new_tokens: int = option("tokens to decode", default=64, low=2)
    streams: tuple[int, ...] = option("how many texts are decoded at once", default=(1, 8), metavar="N,...", low=1)
    repeat: int = option("runs of every measurement; the median counts", default=3, low=1)
    record: Path | None = option("write a benchmark record, the format of bench/records/", default=None)
    json: bool = option("print the record in place of the table", default=False)
    configuration: Configuration = settings(draft="none")


def run(options: Options) -> int:
    """Measure the machine, then the model, variants interleaved; print a table."""
    check(options)
    from stretto.hub.models import resolve

    path = resolve(options.model, env=read_env())
    from stretto.llm import DTYPES, LLM
    from stretto.planner.measure import describe_machine, measure_machine, model_cost, prefill_cost
    from stretto.planner.record import as_record, result
    from stretto.runner.staircase import row_seconds

    how = options.configuration.settings.replace(prefix_cache="none")  # prompts repeat, and are to be read each time
    if "max_seqs" not in options.configuration.sources:
        how = how.replace(max_seqs=max(options.streams))
    dtype = DTYPES[how.dtype]
    env = replace(read_env(), no_programs=True)  # bounds are those of the model itself
    llm = LLM(path, how, env=env, progress=progress("loading"), note=note)
    lm = llm.engine.runner.lm
    samples = measure(llm, options)
    rows_of = row_seconds(llm.engine.runner)
    # afterwards: on a shared machine the neighbours of the runs just measured
    machine = measure_machine(dtype, llm.backend_choice.threads)
    bounds = _bounds(options, machine, model_cost(lm, dtype), prefill_cost(lm, dtype))
    words = (Path(options.model).name, llm.backend_choice.name, how.dtype, f"draft {how.draft}")
    name = "bench " + ", ".join((*words, f"prefill {how.prefill}"))
    results = [result(quantity, "tokens/s", runs, bounds[quantity]) for quantity, runs in samples.items()]
    results += [result(f"step of {n} rows", "ms", [1e3 * seconds]) for n, seconds in rows_of.items()]
    where = {**describe_machine(), **asdict(machine)}
    record = as_record(name, shlex.join(["stretto", *_words(options)]), where, results, samples)
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        note(f"wrote {options.record}")
    if options.json:
        print_json(record)
        return 0
    rows = []
    for row in record["results"][: len(samples)]:
        value, bound, (low, high) = row["value"], row["bound"], row["spread"]
        share = f"{value / bound:.0%} of {bound:,.0f}"
        rows.append((row["quantity"], f"{value:,.1f}", f"{low:,.1f} to {high:,.1f}", share))
    print(table(("quantity", "tokens/s", "spread", "of bound"), rows))
    print(table(("rows of a step", "takes"), [(str(n), said) for n, said in verified_rows(rows_of).items()]))
    note(f"bound: {machine.bandwidth / 1e9:.1f} GB/s read, {machine.flops / 1e9:,.0f} GFLOP/s in {how.dtype}")
    return 0


def check(options: Options) -> None:
    """Raise UserError for whatever can be refused without the model, and not by the limits of one option."""
    if options.record is not None and not options.record.parent.is_dir():
        raise UserError(f"--record {options.record}: no such folder", try_="a file in a folder that exists")


def prompt_of(llm: "LLM", num_tokens: int, offset: int = 0) -> list[int]:
    """`num_tokens` ids of real text; `offset` starts elsewhere in it, so that streams differ."""
    ids = llm.encode(PARAGRAPH)
    start = offset % len(ids)
    repeated = (ids[start:] + ids[:start]) * (num_tokens // len(ids) + 1)
    return repeated[:num_tokens]


def measure(llm: "LLM", options: Options) -> dict[str, list[float]]:
    """Tokens/s of every run, by quantity. One round warms up; then the variants take turns, `repeat` times."""
    samples: dict[str, list[float]] = {}
    show = progress("measuring")
    greedy = Sampling(temperature=0.0, ignore_eos=True, max_tokens=options.new_tokens)
    first_only = Sampling(temperature=0.0, ignore_eos=True, max_tokens=1)
    for turn in range(options.repeat + 1):
        found: dict[str, float] = {}
        for n in options.prompt_tokens:
            result = llm.generate(prompt_of(llm, n, offset=turn), first_only)[0]
            found[f"prefill {n}"] = result.timings.prompt_per_second
        for s in options.streams:
            prompts = [prompt_of(llm, _DECODE_PROMPT, offset=turn + 17 * i) for i in range(s)]
            results = llm.generate(prompts, greedy)
            found[f"decode x{s}"] = sum(result.timings.predicted_per_second for result in results)
        show(turn + 1, options.repeat + 1)
        for quantity, value in found.items() if turn else ():
            samples.setdefault(quantity, []).append(value)
    return samples


def _bounds(options: Options, machine: Machine, decode: ModelCost, prefill: ModelCost) -> dict[str, float]:
    context = _DECODE_PROMPT + options.new_tokens // 2
    bounds = {f"prefill {n}": prefill_bound(machine, prefill, n) for n in options.prompt_tokens}
    for s in options.streams:
        seconds = step_seconds(machine, decode, num_tokens=s, num_seqs=s, sum_context=s * context)
        bounds[f"decode x{s}"] = s / seconds
    return bounds


def _words(options: Options) -> list[str]:
    """The command line that measures the same again."""
    how = options.configuration.settings
    given = [(one, getattr(options, one.field)) for one in options_of(Options) if not one.positional]
    given += [(one, getattr(how, one.field)) for one in groups_of(Options)["configuration"].options]
    found = ["bench", options.model]
    for one, value in given:
        if one.field not in ("record", "json") and value != one.default:
            found += [one.name, one.text_of(value)]
    return found
