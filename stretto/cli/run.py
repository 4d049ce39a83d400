"""`stretto run`: one answer, or a chat in the terminal. Settings are checked before torch is imported."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stretto.cli._flags import argument, option
from stretto.cli._input import check_utf8, read_prompt, read_template
from stretto.cli._terminal import note, print_json, progress
from stretto.core.card import DRAFTERS, JUDGES
from stretto.core.env import read_env
from stretto.core.errors import UserError
from stretto.core.memory import parse_size
from stretto.core.sampling import Sampling

if TYPE_CHECKING:
    from stretto.llm import LLM, Result

EXAMPLES = (
    'stretto run smollm2 "Why is the sky blue?" --stats',
    'stretto run smollm2 --raw "Once upon a time" -n 64 --temp 0 --draft ngram:max_n=3,nodes=8 --show-draft',
    'git diff | stretto run smollm2 "Summarise this change." --json',
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of `stretto run`. A sampling option that is not given takes the model's own hint."""

    model: str = argument("an alias such as smollm2, a .gguf file or a checkpoint directory")
    prompt: str | None = argument(
        "what to answer; the text of a file or pipe on standard input comes before it (- is standard input alone);"
        " without it, a chat in a terminal, else standard input",
        default=None,
    )
    max_tokens: int | None = option("at most this many tokens (default: what fits)", short="-n", default=None)
    temp: float | None = option("temperature; 0 takes the likeliest token (default: the model's hint)", default=None)
    top_p: float | None = option("keep the likeliest tokens that make up this mass", default=None)
    top_k: int | None = option(
        "keep this many of the likeliest tokens, 0 for all (default: the model's hint, else all)", default=None
    )
    min_p: float | None = option("drop tokens less likely than this times the likeliest", default=None)
    seed: int | None = option("the same seed gives the same text (default: a random one)", default=None)
    stop: tuple[str, ...] = option("the text ends before this string; may be repeated", default=())
    system: str | None = option("system message of the conversation", default=None)
    raw: bool = option("continue the prompt as it is, without a chat template", default=False)
    chat_template: Path | None = option("a Jinja chat template in place of the model's", default=None)  # noqa: RUF009  a field
    no_stdin: bool = option(
        "leave standard input alone: in a `while read` loop, beside a pipe that stays open", default=False
    )
    draft: str = option(
        "none, auto (n-grams while they are measured to help), ngram, or with settings: ngram:max_n=3,nodes=8",
        default="auto",
        metavar="SPEC",
    )
    judge: str = option("which drafts stay: coupled keeps the text of the seed", default="coupled", metavar="NAME")
    dtype: str = option("float32 is the reference mode", default="bfloat16", choices=("bfloat16", "float32"))
    backend: str = option(
        "native kernels, torch, or native where the model and this machine allow it",
        default="auto",
        choices=("auto", "native", "torch"),
    )
    prefill: str = option(
        "exact, or int8: faster prompts, activations rounded to 8 bits and attention to 16 (native only)",
        default="exact",
        choices=("exact", "int8"),
    )
    ctx: int | None = option(
        "longest prompt and answer together (default: what the model was made for, or what fits)", default=None
    )
    mem: str | None = option(
        "memory for the cache, such as 8GiB (default: 90% of what is free, less weights)", default=None, metavar="SIZE"
    )
    stats: bool = option("close with a table of speeds and draft counters", default=False)
    show_draft: bool = option("mark accepted draft tokens, and rejected ones struck through", default=False)
    json: bool = option("print one JSON object in place of the text", default=False)


def run(options: Options) -> int:
    """Answer or chat."""
    sampling = check(options)
    template = read_template(options.chat_template)
    alone = "--json" if options.json else "--raw" if options.raw else None
    prompt = read_prompt(options.prompt, alone=alone, raw=options.raw, no_stdin=options.no_stdin)
    from stretto.hub.models import resolve

    path = resolve(options.model, env=read_env())
    with _loading(options.model) as report:
        from stretto.llm import LLM

        llm = LLM(
            path,
            draft=options.draft,
            judge=options.judge,
            dtype=options.dtype,
            backend=options.backend,
            prefill=options.prefill,
            context=options.ctx,
            memory_bytes=None if options.mem is None else parse_size(options.mem, "--mem"),
            max_seqs=1,
            chat_template=template,
            progress=report,
            note=note,
        )
    if options.dtype != "float32" and options.backend == "auto" and llm.backend_choice.why is not None:
        note(f"note: not on the native kernels, which are several times faster: {llm.backend_choice.why}")
    if prompt is None:
        from stretto.cli._chat import chat

        return chat(llm, options, sampling)
    result = _answer(llm, options, sampling, prompt)
    if options.json:
        print_json(as_json(result, options, llm.backend_choice.name))
    if options.stats:
        from stretto.cli._answer import stats

        note(stats(result))
    return 0


def check(options: Options) -> Sampling:
    """The sampling of these options. Raises UserError for whatever can be refused without the model."""
    sampling = Sampling(
        max_tokens=options.max_tokens,
        temperature=options.temp,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        seed=options.seed,
        stop=options.stop,
    )
    name, settings, _ = options.draft.partition(":")
    if name not in ("none", "auto"):
        DRAFTERS.card(name)
    if settings:
        from stretto.llm.options import make_drafting

        make_drafting(options.draft)
    if options.judge not in JUDGES.names():
        JUDGES.card(options.judge)
    if options.mem is not None:
        parse_size(options.mem, "--mem")
    if options.ctx is not None and options.ctx < 2:
        raise UserError(f"--ctx is {options.ctx}", why="a context holds at least a prompt token and an answer token")
    for flag, value in (("--system", options.system), ("--chat-template", options.chat_template)):
        if options.raw and value is not None:
            raise UserError(
                f"--raw and {flag} exclude each other", why="--raw sends the prompt without a chat template"
            )
    if options.no_stdin and options.prompt in (None, "-"):
        raise UserError("--no-stdin needs a prompt", why="nothing else is read", try_="a PROMPT on the command line")
    if options.json and options.show_draft:
        raise UserError("--json and --show-draft exclude each other", why="drafts are marked in text")
    for text in (options.prompt, options.system, *options.stop):
        check_utf8(text or "", "the command line")
    return sampling


def as_json(result: "Result", options: Options, backend: str) -> dict[str, Any]:
    """What `--json` prints. backend: who computed it, as `LLM.backend_choice` names it."""
    usage = result.usage
    return {
        "model": options.model,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "usage": {**asdict(usage), "total_tokens": usage.total_tokens},
        "timings": asdict(result.timings),
        "seed": result.seed,
        "draft": options.draft,
        "judge": options.judge,
        "dtype": options.dtype,
        "backend": backend,
        "prefill": options.prefill,
        "prompt_token_ids": result.prompt_token_ids,
        "token_ids": result.token_ids,
    }


def _answer(llm: "LLM", options: Options, sampling: Sampling, prompt: str) -> "Result":
    from stretto.cli._answer import Printer

    system = [{"role": "system", "content": options.system}] if options.system is not None else []
    messages = [*system, {"role": "user", "content": prompt}]
    chunks = llm.stream(prompt, sampling) if options.raw else llm.chat_stream(messages, sampling)
    with closing(Printer(llm.tokenizer, options.show_draft, quiet=options.json)) as printer:
        for chunk in chunks:
            printer.add(chunk)
            if chunk.result is not None:
                return chunk.result
    raise AssertionError("the last chunk carries the result")


@contextmanager
def _loading(model: str) -> "Iterator[Any]":
    """A progress line from the import of torch to the last tensor."""
    show = progress(f"loading {model}")
    show(0, 1)
    try:
        yield show
    finally:
        show(1, 1)
