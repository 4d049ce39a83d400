"""`stretto batch`: the requests of a file, answered into another one. Ended anyhow, it goes on where it was."""

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stretto.cli._settings import settings
from stretto.cli._terminal import note, print_json, progress
from stretto.core.collector import collector_paused
from stretto.core.env import read_env
from stretto.core.errors import UserError
from stretto.core.option import argument, option
from stretto.core.settings import Configuration

if TYPE_CHECKING:
    from stretto.serve.batch.lines import Answers, Place

EXAMPLES = (
    "stretto batch smollm2 requests.jsonl answers.jsonl",
    "stretto batch ./model.gguf in.jsonl out.jsonl --order blend --max-seqs 64 --json",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of `stretto batch`."""

    model: str = argument("an alias such as smollm2, a .gguf file or a checkpoint directory")
    source: Path = argument("requests, one a line, in OpenAI's batch form: custom_id, method, url, body")
    target: Path = argument("where answers go, one a line; those that are there already are not asked for again")
    window: int = option(
        "lines that wait at a time, for the order policy to choose from", default=1024, low=1, high=1 << 16
    )
    served_model_name: tuple[str, ...] = option(
        "name of the model in the lines; may be repeated (default: as it was given, without folders)", default=()
    )
    reasoning_format: str = option(
        "auto tells the thinking of models that think from the answer; none leaves all of it in the text",
        default="auto",
        choices=("auto", "none"),
    )
    json: bool = option("print one JSON object with the counts when all is done", default=False)
    configuration: Configuration = settings(order="prefix")


def run(options: Options) -> int:
    """Answer what has no answer yet; 1 if a line of this run failed."""
    if options.source.resolve() == options.target.resolve():
        raise UserError(f"{options.target} is both input and output")
    from stretto.serve.batch.lines import Answers, read_places
    from stretto.serve.batch.run import URLS

    places = read_places(options.source, URLS)
    answers = Answers(options.target)
    try:
        strangers = answers.ids - {place.custom_id for place in places}
        if strangers:
            first = min(strangers)
            raise UserError(
                f"{options.target} answers {len(strangers):,} requests that {options.source} does not hold",
                why=f"one has the custom_id {first!r:.80}",
                try_="another output",
            )
        if answers.ids:
            note(f"{len(answers.ids):,} of {len(places):,} lines are answered already")
        if answers.was_cut:
            note("the last line of the output had no end, and was cut off")
        if len(answers.ids) < len(places):
            return _answer(options, places, answers)
        note("nothing is left to do")
        return 0
    finally:
        answers.close()


def _answer(options: Options, places: "Sequence[Place]", answers: "Answers") -> int:
    from stretto.hub.models import resolve
    from stretto.llm import LLM
    from stretto.serve.batch.run import run_batch
    from stretto.serve.service import Config

    path, show = resolve(options.model, env=read_env()), progress(f"loading {options.model}")
    with collector_paused(for_good=True):
        llm = LLM(path, options.configuration.settings, progress=show, note=note)
    show(1, 1)
    names = options.served_model_name or (Path(options.model).name or "model",)
    config = Config(names=names, reasoning=options.reasoning_format == "auto")
    totals = asyncio.run(
        run_batch(
            llm, config, options.source, places, answers, window=options.window, progress=progress(str(options.source))
        )
    )
    note(
        f"{totals.answered:,} lines in {totals.seconds:.1f} s, {totals.failed:,} of them failed;"
        f" {totals.prompt_tokens:,} tokens read, {totals.cached_tokens:,} of them known,"
        f" {totals.completion_tokens:,} written"
    )
    if options.json:
        print_json(dataclasses.asdict(totals))
    return 1 if totals.failed else 0
