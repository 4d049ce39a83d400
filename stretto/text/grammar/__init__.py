"""Structured output: grammars (`stretto.core.grammar`) compiled for a tokenizer, by `llguidance`.

A `Compiler` makes a `Compiled` of a `Grammar`, in milliseconds as a rule and in seconds at worst, so never in the
thread of an engine; `Compiled.matcher` is what follows one request. llguidance is imported when the first grammar
comes.
"""

from functools import cached_property
from typing import TYPE_CHECKING

from stretto.core.grammar import Grammar, TokenMatcher
from stretto.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from stretto.text.grammar.compiler import Compiler


class Grammars:
    """The matchers of one tokenizer. Nothing is imported or built before a grammar comes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def matcher(self, grammar: Grammar | None) -> TokenMatcher | None:
        """What follows `grammar` for one request; None for none. Raises as `Compiler.compile`."""
        return self._compiler.compile(grammar).matcher() if grammar is not None else None

    @cached_property
    def _compiler(self) -> "Compiler":
        from stretto.text.grammar.compiler import Compiler

        return Compiler(self._tokenizer)
