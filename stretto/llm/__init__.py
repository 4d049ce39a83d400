"""The Python API: `LLM` for scripts, `AsyncLLM` for event loops.

llm = LLM("smollm2", draft="ngram")
llm.generate(["Once upon a time"], Sampling(temperature=0, max_tokens=64))[0].text
for chunk in llm.stream("Once upon a time"):
    print(chunk.text, end="")
llm.chat([{"role": "user", "content": "Why is the sky blue?"}]).text
"""

from stretto.core.collector import collector_paused

with collector_paused():
    from stretto.llm.asynchronous import AsyncLLM
    from stretto.llm.loading import open_tokenizer
    from stretto.llm.results import Chunk, Result, Timings, Usage
    from stretto.llm.sizes import DTYPES
    from stretto.llm.sync import LLM

__all__ = ["DTYPES", "LLM", "AsyncLLM", "Chunk", "Result", "Timings", "Usage", "open_tokenizer"]
