"""Prompts that begin alike: what was known is counted, never changes a text, and stays with its key."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import CHAT, COMPLETIONS, Running, serving, tiny

from stretto.serve.app import Access

LONG = "the same beginning of every one of these texts, long enough to be kept, and then "


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[Running]:
    with serving(tiny(folder), access=Access(keys=("aaa", "bbb"))) as one:
        yield one


def ask(one: Running, key: str, prompt: str, **fields: Any) -> tuple[int, str]:
    """Tokens that were known, and the text."""
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, **fields}
    found = one.post(COMPLETIONS, body, headers={"x-api-key": key}).json()
    cached = found["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert found["timings"]["cache_n"] == cached
    assert found["timings"]["prompt_n"] + cached == found["usage"]["prompt_tokens"]
    return cached, found["choices"][0]["text"]


def test_a_prompt_is_known_to_its_own_key_only(shared: Running) -> None:
    cold, text = ask(shared, "aaa", LONG + "one")
    warm, again = ask(shared, "aaa", LONG + "one")
    assert cold == 0 < warm and again == text
    assert ask(shared, "aaa", LONG + "two")[0] > 0
    assert ask(shared, "bbb", LONG + "one") == (0, text), "what others asked is not told"
    assert ask(shared, "aaa", LONG + "one", cache_salt="pepper") == (0, text)
    assert ask(shared, "aaa", LONG + "one", cache_salt="pepper")[0] > 0
    page = shared.http.get("/metrics", headers={"x-api-key": "aaa"}).text
    hits = next(line for line in page.splitlines() if line.startswith("stretto:prefix_cache_hits_total"))
    assert float(hits.rpartition(" ")[2]) > 0


def test_a_stream_counts_them_too(shared: Running) -> None:
    body = {
        "messages": [{"role": "user", "content": LONG}], "max_tokens": 4, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    for known in (False, True):
        text = shared.post(CHAT, body, headers={"x-api-key": "aaa"}).text
        assert ('"cached_tokens":0}' not in text) == known
