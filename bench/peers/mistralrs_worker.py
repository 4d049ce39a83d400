"""mistral.rs: takes and gives texts, so ids are turned into text and back by its own tokenizer (0.1 ms for 200 ids).

There is no stream of a plain completion: when the first token was there is what the answer says of its prompt. A batch
is as many requests at once, one thread each. A prompt that its tokenizer reads as other ids is refused.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _serve import Emit, Ids, serve


class MistralRs:
    """`Runner` on a GGUF file, without caches of prefixes."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        from importlib.metadata import version

        import mistralrs

        self.lib = mistralrs
        which = mistralrs.Which.GGUF(str(Path(model).parent), Path(model).name)
        self.runner = mistralrs.Runner(which, max_seqs=options["streams"], prefix_cache_n=0, no_paged_attn=True)
        self.pool = ThreadPoolExecutor(options["streams"])
        return {"version": f"mistralrs {version('mistralrs')}", "settings": {"prefix_cache_n": 0, "threads": threads}}

    def generate(self, prompts: list[Ids], new: int, emit: Emit) -> list[Ids]:
        texts = [self.runner.detokenize_text(ids, False) for ids in prompts]
        for text, ids in zip(texts, prompts, strict=True):
            if self._ids(text) != ids:
                raise ValueError("its tokenizer reads this prompt as other tokens")
        said = self._complete(texts, new, emit)
        rows = [self._ids(text + more)[len(ids) :] for text, more, ids in zip(texts, said, prompts, strict=True)]
        # A text may have fewer tokens than it was said in; what is compared are the first ones.
        return [(row + row[-1:] * new)[:new] for row in rows]

    def _complete(self, texts: list[str], new: int, emit: Emit) -> list[str]:
        started = time.perf_counter()

        def one(text: str) -> str:
            request = self.lib.CompletionRequest(
                prompt=text, model="default", max_tokens=new, temperature=0.0, ignore_eos=True
            )
            answer = self.runner.send_completion_request(request)
            if answer.usage.completion_tokens != new:
                raise ValueError(f"asked for {new} tokens, got {answer.usage.completion_tokens}")
            emit(started + answer.usage.total_prompt_time_sec)
            return str(answer.choices[0].text)

        return list(self.pool.map(one, texts))

    def _ids(self, text: str) -> Ids:
        return list(self.runner.tokenize_text(text, False, None))


if __name__ == "__main__":
    sys.exit(serve(MistralRs))
