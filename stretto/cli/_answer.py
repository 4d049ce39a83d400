"""How an answer looks while it arrives, and the table that closes it."""

import sys
from typing import TYPE_CHECKING

from stretto.cli._terminal import harmless, has_colour, is_terminal, paint

if TYPE_CHECKING:
    from stretto.llm import Chunk, Result
    from stretto.text.tokenizer import Tokenizer


class Printer:
    """Writes chunks to standard output as they come.

    show_draft: drafted tokens in colour, rejected ones dim and struck through before what replaced them; without
    colours {+accepted+} and [-rejected-], as in a word diff. quiet: nothing is written.
    """

    def __init__(self, tokenizer: "Tokenizer", show_draft: bool, quiet: bool = False) -> None:
        self._tokenizer, self._show_draft, self._quiet = tokenizer, show_draft, quiet
        self._colour = has_colour(sys.stdout)
        self._clean = is_terminal(sys.stdout)
        self._column = 0

    def add(self, chunk: "Chunk") -> None:
        """Write one chunk."""
        if self._quiet:
            return
        text = self._marked(chunk) if self._show_draft else self._safe(chunk.text)
        if text:
            self._column = 0 if text.endswith("\n") else 1
            sys.stdout.write(text)
            sys.stdout.flush()

    def close(self) -> None:
        """End the last line."""
        if self._column:
            self._column = 0
            sys.stdout.write("\n")
            sys.stdout.flush()

    def _marked(self, chunk: "Chunk") -> str:
        """Accepted tokens come first in a chunk, then what was rejected, then the one token that no draft gave."""
        text, own = chunk.text, ""
        if chunk.accepted < len(chunk.token_ids):
            own = self._tokenizer.decode(chunk.token_ids[chunk.accepted :])
            if chunk.accepted == 0 or not text.endswith(own):
                own = text if chunk.accepted == 0 else ""  # half a character is held back: the chunk stays whole
        drafted = self._safe(text.removesuffix(own) if own else text)
        rejected = self._safe(self._tokenizer.decode(chunk.rejected_ids)) if chunk.rejected_ids else ""
        if self._colour:
            return paint(drafted, "green") + paint(rejected, "struck") + self._safe(own)
        plus = f"{{+{drafted}+}}" if drafted and chunk.accepted else drafted
        return plus + (f"[-{rejected}-]" if rejected else "") + self._safe(own)

    def _safe(self, text: str) -> str:
        return harmless(text) if self._clean else text


def stats(result: "Result") -> str:
    """Two columns: speeds and counters of one answer."""
    t, usage = result.timings, result.usage
    rows = [
        ("load", f"{t.load_s:.2f} s"),
        ("time to first token", f"{t.queue_s + t.prefill_s:.3f} s"),
        ("prefill", f"{t.prompt_per_second:,.0f} tokens/s ({usage.prompt_tokens} tokens)"),
        ("decode", f"{t.predicted_per_second:,.1f} tokens/s ({usage.completion_tokens} tokens)"),
        ("tokens per step", f"{usage.completion_tokens / max(1, t.steps):.2f}"),
        ("drafted, accepted", f"{t.draft_n}, {t.draft_n_accepted}" + _share(t.draft_n_accepted, t.draft_n)),
        ("ended by, seed", f"{result.finish_reason}, {result.seed}"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(["", *(f"{name.ljust(width)}  {value}" for name, value in rows)])


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.0%})" if whole else ""
