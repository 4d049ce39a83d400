"""Counts and times of an answer, in OpenAI's and in llama.cpp's names."""

import itertools
from collections.abc import Sequence
from typing import Any

from stretto.llm.results import Result
from stretto.serve.parts import PartReader
from stretto.text.tokenizer import Tokenizer


def cached_tokens(result: Result) -> int:
    """Tokens of the prompt that needed no computation."""
    return result.usage.cached_tokens


def usage(groups: Sequence[Sequence[Result]]) -> dict[str, Any]:
    """OpenAI's `usage`. groups: the answers of each prompt, which counts once."""
    prompt = sum(group[0].usage.prompt_tokens for group in groups)
    completion = sum(result.usage.completion_tokens for group in groups for result in group)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(cached_tokens(group[0]) for group in groups)},
    }


def thinking_tokens(tokenizer: Tokenizer, result: Result, reader: PartReader) -> int:
    """How many tokens of an answer are its thinking, the tags among them. reader: the one that read the answer."""
    tags = reader.tags
    if tags is None:
        return 0
    spelled = [tokenizer.token_bytes(token) for token in result.token_ids]
    text, closing = b"".join(spelled), tags.closing.encode()
    if not reader.begins_open and not text.lstrip().startswith(tags.opening.encode()):
        return 0
    if (at := text.find(closing)) < 0:
        return len(spelled)
    ends = itertools.accumulate(map(len, spelled))
    return 1 + next(i for i, end in enumerate(ends) if end >= at + len(closing))


def timings(result: Result) -> dict[str, Any]:
    """llama.cpp's `timings` of one answer."""
    times, cached = result.timings, cached_tokens(result)
    prompt_n, predicted_n = result.usage.prompt_tokens - cached, result.usage.completion_tokens
    prompt_ms, predicted_ms = 1e3 * times.prefill_s, 1e3 * times.decode_s
    return {
        "cache_n": cached,
        "prompt_n": prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / prompt_n if prompt_n else 0.0,
        "prompt_per_second": 1e3 * prompt_n / prompt_ms if prompt_ms else 0.0,
        "predicted_n": predicted_n,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / (predicted_n - 1) if predicted_n > 1 else 0.0,
        "predicted_per_second": times.predicted_per_second,
        "draft_n": times.draft_n,
        "draft_n_accepted": times.draft_n_accepted,
    }


def about(result: Result) -> dict[str, Any]:
    """What is ours to say of an answer: the seed that gives it again, and what may have changed it."""
    return {"seed": result.seed, "approximate": list(result.approximate)}
