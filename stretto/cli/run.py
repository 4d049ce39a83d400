"""`stretto run`: one answer, or a chat in the terminal. Settings are checked before torch is imported."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stretto.cli._input import check_utf8, read_prompt
from stretto.cli._run_options import Options
from stretto.cli._terminal import note, print_json, progress
from stretto.core.collector import collector_paused
from stretto.core.env import read_env
from stretto.core.errors import UserError

if TYPE_CHECKING:
    from stretto.llm import LLM, Result

EXAMPLES = (
    'stretto run smollm2 "Why is the sky blue?" --stats',
    'stretto run smollm2 --raw "Once upon a time" -n 64 --temp 0 --draft ngram:max_n=3,nodes=8 --show-draft',
    'stretto run smollm2 --raw "$(cat rules.txt)" -n 1 --save-prefix rules.prefix',
    'git diff | stretto run smollm2 "Summarise this change." --json',
)


def run(options: Options) -> int:
    """Answer or chat."""
    check(options)
    alone = "--json" if options.json else "--raw" if options.raw else None
    prompt = read_prompt(options.prompt, alone=alone, raw=options.raw, no_stdin=options.no_stdin)
    if options.save_prefix is not None and prompt is None:
        raise UserError("--save-prefix needs a prompt", why="a chat has none of its own", try_="a PROMPT")
    from stretto.hub.models import resolve

    path, loras = resolve(options.model, env=read_env()), options.loras
    with _loading(options.model) as report:
        from stretto.llm import LLM

        how = options.configuration.settings
        llm = LLM(path, how, progress=report, note=note, loras=loras)
    if how.dtype != "float32" and how.backend == "auto" and llm.backend_choice.why is not None:
        note(f"note: not on the native kernels, which are several times faster: {llm.backend_choice.why}")
    if options.load_prefix is not None:
        note(f"note: the cache has {llm.prefixes.load(options.load_prefix):,} tokens of {options.load_prefix}")
    if prompt is None:
        from stretto.cli._chat import chat

        return chat(llm, options)
    result = _answer(llm, options, prompt)
    if options.save_prefix is not None:
        count = llm.prefixes.save(result.prompt_token_ids, options.save_prefix)
        note(f"note: {options.save_prefix} has {count:,} tokens")
    if options.json:
        print_json(as_json(result, options, llm.backend_choice.name))
    if options.stats:
        from stretto.cli._answer import stats

        note(stats(result))
    return 0


def check(options: Options) -> None:
    """Raise UserError for whatever can be refused without the model, and not by the limits of one option."""
    template = options.configuration.sources.get("chat_template") == "--chat-template"
    for flag, is_given in (("--system", options.system is not None), ("--chat-template", template)):
        if options.raw and is_given:
            raise UserError(
                f"--raw and {flag} exclude each other", why="--raw sends the prompt without a chat template"
            )
    if options.no_stdin and options.prompt in (None, "-"):
        raise UserError("--no-stdin needs a prompt", why="nothing else is read", try_="a PROMPT on the command line")
    if options.json and options.show_draft:
        raise UserError("--json and --show-draft exclude each other", why="drafts are marked in text")
    for text in (options.prompt, options.system, *options.sampling.stops):
        check_utf8(text or "", "the command line")


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
        "settings": options.configuration.settings.as_dict(),
        "backend": backend,
        "prompt_token_ids": result.prompt_token_ids,
        "token_ids": result.token_ids,
    }


def _answer(llm: "LLM", options: Options, prompt: str) -> "Result":
    from stretto.cli._answer import Printer

    system = [{"role": "system", "content": options.system}] if options.system is not None else []
    messages = [*system, {"role": "user", "content": prompt}]
    how, lora = options.sampling, options.lora_name
    chunks = llm.stream(prompt, how, lora=lora) if options.raw else llm.chat_stream(messages, how, lora=lora)
    with closing(Printer(llm.tokenizer, options.show_draft, quiet=options.json)) as printer:
        for chunk in chunks:
            printer.add(chunk)
            if chunk.result is not None:
                return chunk.result
    raise AssertionError("the last chunk carries the result")


@contextmanager
def _loading(model: str) -> "Iterator[Any]":
    """A progress line from the first import to the last tensor."""
    show = progress(f"loading {model}")
    show(0, 1)
    try:
        with collector_paused(for_good=True):
            yield show
    finally:
        show(1, 1)
