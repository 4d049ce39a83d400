"""llama.cpp and ik_llama.cpp through their C functions: the high-level classes cannot decode several streams.

Like llama.cpp's own batched benchmark: one context per use, all streams of a step in one batch, the KV of each stream
apart. The argmax is numpy's (0.02 ms of 49,152 logits). options: {"binding": a name of `BINDINGS`; "repack": let
ik_llama.cpp interleave rows when it loads, as its -rtr does; "plain_attention": without its fused attention}.
"""

import sys
import time
from typing import Any

from _llama_bindings import BINDINGS
from _serve import Emit, Ids, serve

CHUNK = 2048  # tokens of one llama_decode; it computes them 512 at a time
Row = tuple[int, int, int, bool]  # token, position, stream, whether its logits are wanted


class LlamaCpp:
    """One model, a context for one stream, and one for many that is made when it is first needed."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        import numpy

        self.numpy, self.binding = numpy, BINDINGS[options["binding"]]()
        self.lib = lib = self.binding.lib
        self.threads, self.options = threads, options
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        if options.get("repack"):
            params.repack_tensors, params.use_mmap = True, False
        self.model = lib.llama_model_load_from_file(model.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        self.num_words = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.contexts = {1: self._context(1, options["context"])}
        system = " ".join(self.binding.system().split())
        return {"version": self.binding.version, "settings": {"system": system, "repack": bool(options.get("repack"))}}

    def _context(self, streams: int, tokens: int) -> Any:
        params = self.lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = tokens, CHUNK, streams
        params.n_threads = params.n_threads_batch = self.threads
        if self.options.get("plain_attention"):
            params.flash_attn = False
        context = self.lib.llama_init_from_model(self.model, params)
        if not context:
            raise RuntimeError(f"llama.cpp cannot make a context of {streams} streams")
        return context

    def generate(self, prompts: list[Ids], new: int, emit: Emit) -> list[Ids]:
        many = 1 if len(prompts) == 1 else self.options["streams"]
        if many not in self.contexts:
            self.contexts[many] = self._context(many, self.options["batch_tokens"])
        context = self.contexts[many]
        self.binding.clear(context)
        rows = [
            (token, position, stream, position == len(prompt) - 1)
            for stream, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        last = [0] * len(prompts)
        for start in range(0, len(rows), CHUNK):
            for stream, token in self._decode(context, rows[start : start + CHUNK]):
                last[stream] = token
        emit()
        tokens = [[token] for token in last]
        for step in range(new - 1):
            rows = [(row[-1], len(prompts[i]) + step, i, True) for i, row in enumerate(tokens)]
            for stream, token in self._decode(context, rows):
                tokens[stream].append(token)
        return tokens

    def rows(self, ids: Ids, rows: int, repeat: int) -> list[float]:
        """The first rows of the text again, as a draft after it whose every row is judged, and forgotten."""
        context, found = self.contexts[1], []
        self.binding.clear(context)
        self._decode(context, [(token, i, 0, i == len(ids) - 1) for i, token in enumerate(ids)])
        draft = [(token, len(ids) + i, 0, True) for i, token in enumerate(ids[:rows])]
        for _ in range(repeat):
            started = time.perf_counter()
            self._decode(context, draft)
            found.append(time.perf_counter() - started)
            self.binding.forget(context, len(ids))
        return found

    def _decode(self, context: Any, rows: list[Row]) -> list[tuple[int, int]]:
        """Run rows; returns (stream, next token) of the wanted ones."""
        batch = self.lib.llama_batch_init(len(rows), 0, 1)
        try:
            batch.n_tokens = len(rows)
            for i, (token, position, stream, wanted) in enumerate(rows):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
                batch.seq_id[i][0] = stream
            status = self.lib.llama_decode(context, batch)
        finally:
            self.lib.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        return [(row[2], self._argmax(context, i)) for i, row in enumerate(rows) if row[3]]

    def _argmax(self, context: Any, row: int) -> int:
        logits = self.binding.floats(self.lib.llama_get_logits_ith(context, row), self.num_words)
        return int(self.numpy.frombuffer(logits, self.numpy.float32).argmax())


if __name__ == "__main__":
    sys.exit(serve(LlamaCpp))
