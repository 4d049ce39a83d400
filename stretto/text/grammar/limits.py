"""What a grammar may cost. llguidance 1.9 has limits for what its parser does; the rest is bounded in `trial`."""

from typing import Any

SECONDS = 5.0  # to compile
MEMORY_BYTES = 512 << 20  # address space of the process that compiles it first

MASK_SECONDS = 1.0  # of a processor, for one mask: 0.00003 as a rule, and llguidance can take more than its fuel allows

LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,  # about 20 ms
    "step_lexer_fuel": 200_000,  # about 14 ms per mask
    "step_max_items": 4_000,  # of the Earley parser, per mask
    "max_items_in_row": 2_000,
    "max_lexer_states": 100_000,  # 1 to 2 kB each
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""Arguments of `llguidance.LLParserLimits`: what may happen in a step, where every other request waits for it."""
