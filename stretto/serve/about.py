"""`About`: what a model is and can do, which is known when it has been loaded once and told while it is unloaded."""

from dataclasses import dataclass

from stretto.llm.sync import LLM


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """context: tokens of the longest prompt and answer together; template: the source of the chat template, if there is
    one; capabilities: in the words of clients."""

    context: int
    vocab_size: int
    max_seqs: int
    backend: str
    template: str | None
    capabilities: tuple[str, ...]

    @staticmethod
    def of(llm: LLM, *, thinks: bool, calls: bool) -> "About":
        """thinks, calls: whether thinking and calls of tools are told from the text."""
        can = {
            "completion": True,
            "chat": llm.template is not None,
            "thinking": thinks,
            "tools": calls,
            "structured_output": bool(llm.tokenizer.eos_ids),
        }
        runner = llm.engine.runner
        return About(
            context=runner.sizes.context,
            vocab_size=runner.vocab_size,
            max_seqs=runner.sizes.max_seqs,
            backend=llm.backend_choice.name,
            template=llm.template.source if llm.template is not None else None,
            capabilities=tuple(name for name, holds in can.items() if holds),
        )
