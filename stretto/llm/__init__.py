"""The Python API: `LLM` for scripts, `AsyncLLM` for event loops.

llm = LLM("smollm2", draft="ngram")
llm.generate(["Once upon a time"], Sampling(temperature=0, max_tokens=64))[0].text
for chunk in llm.stream("Once upon a time"):
    print(chunk.text, end="")
llm.chat([{"role": "user", "content": "Why is the sky blue?"}]).text
"""

from typing import TYPE_CHECKING, Any

from stretto.core.collector import collector_paused

with collector_paused():
    from stretto.llm.embeddings import Embeddings
    from stretto.llm.results import Chunk, Result, Timings, Usage
    from stretto.llm.sync import LLM

if TYPE_CHECKING:
    from stretto.llm.anew import open_tokenizer
    from stretto.llm.asynchronous import AsyncLLM
    from stretto.llm.facts import DTYPES

_HOMES = {"AsyncLLM": "asynchronous", "DTYPES": "facts", "open_tokenizer": "anew"}

__all__ = ["DTYPES", "LLM", "AsyncLLM", "Chunk", "Embeddings", "Result", "Timings", "Usage", "open_tokenizer"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # loaded on first use: torch, or an event loop
        from importlib import import_module

        with collector_paused():
            return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
