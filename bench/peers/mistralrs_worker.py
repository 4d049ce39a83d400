"""mistral.rs: takes and gives texts, so ids are turned into text and back by its own tokenizer (0.1 ms for 200 ids).

A plain completion cannot be streamed: when the first token was there is what the answer says of its prompt. Batches of
a GGUF file on a CPU end in an error of its matrix product ("not contiguous"), so there is one stream. Where a prompt
was put together its tokenizer may read other ids; one of another length is refused. What was said is read back in the
same way: a token that this changes counts as one that differs.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from _serve import Emit, Ids, serve

CUTS = 4  # tokens by which a prompt may differ in length: the texts that it was put together from
NO_TOKEN = -1


class MistralRs:
    """`Runner` on a GGUF file, without caches of prefixes."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        from importlib.metadata import version

        import mistralrs

        self.lib = mistralrs
        which = mistralrs.Which.GGUF(str(Path(model).parent), Path(model).name)
        self.runner = mistralrs.Runner(which, max_seqs=1, prefix_cache_n=0, no_paged_attn=True)
        return {"version": f"mistralrs {version('mistralrs')}", "settings": {"prefix_cache_n": 0, "threads": threads}}

    def generate(self, prompts: list[Ids], new: int, emit: Emit) -> list[Ids]:
        (ids,) = prompts
        text = self.runner.detokenize_text(ids, False)
        length = len(self._ids(text))
        if abs(length - len(ids)) > CUTS:
            raise ValueError(f"its tokenizer reads {length} tokens in a prompt of {len(ids)}")
        request = self.lib.CompletionRequest(
            prompt=text, model="default", max_tokens=new, temperature=0.0, ignore_eos=True
        )
        started = time.perf_counter()
        answer = self.runner.send_completion_request(request)
        emit(started + answer.usage.total_prompt_time_sec)
        if answer.usage.completion_tokens != new:
            raise ValueError(f"asked for {new} tokens, got {answer.usage.completion_tokens}")
        row = self._ids(text + answer.choices[0].text)[length:]
        return [(row + [NO_TOKEN] * new)[:new]]

    def _ids(self, text: str) -> Ids:
        return list(self.runner.tokenize_text(text, False, None))


if __name__ == "__main__":
    sys.exit(serve(MistralRs))
