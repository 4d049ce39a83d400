"""From a `Grammar` to a `Compiled`: checked in a process of its own, compiled, and kept for the next request."""

import json
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from stretto.core.errors import UserError
from stretto.core.grammar import Grammar, parsed_json
from stretto.text.grammar.complaints import refusal
from stretto.text.grammar.free import Free
from stretto.text.grammar.limits import LIMITS
from stretto.text.grammar.matcher import Matcher
from stretto.text.grammar.schema import check_numbers, cleaned
from stretto.text.grammar.tokens import llguidance_tokenizer
from stretto.text.grammar.trial import Trials
from stretto.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_KEPT = 64  # grammars
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,24}"


class Compiled:
    """A grammar for one tokenizer. Threads may share it."""

    def __init__(self, matcher: "LLMatcher", free: Free | None, end_ids: frozenset[int]) -> None:
        self._matcher, self._free, self._end_ids = matcher, free, end_ids
        self._lock = threading.Lock()

    def matcher(self) -> Matcher:
        """For one request, at the beginning of its output."""
        return Matcher(self._fresh, self._free, self._end_ids)

    def _fresh(self) -> "LLMatcher":
        with self._lock:
            return self._matcher.deep_copy()


class Compiler:
    """Compiles grammars for `tokenizer`, which llguidance is told of once. Threads may share it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._trials = tokenizer, Trials(tokenizer)
        self._lock = threading.Lock()  # over what is remembered
        self._building = threading.Lock()
        self._known: OrderedDict[Grammar, Compiled] = OrderedDict()
        self._theirs: LLTokenizer | None = None
        self._free: dict[tuple[str, int | None], Free] = {}

    def compile(self, grammar: Grammar) -> Compiled:
        """It takes milliseconds as a rule, seconds at worst. Raises UserError for a grammar that cannot be used, which
        names the keyword of a JSON schema; MissingDependency without llguidance."""
        with self._lock:
            found = self._known.get(grammar)
            if found is not None:
                self._known.move_to_end(grammar)
                return found
        made = self._compiled(grammar)
        with self._lock:
            self._known[grammar] = made
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return made

    def _compiled(self, grammar: Grammar) -> Compiled:
        tokenizer = self._llguidance_tokenizer()
        from llguidance import LLMatcher, LLParserLimits

        text = _translated(grammar)
        complaint = self._trials.check(text, grammar.name)
        if not complaint:
            matcher = LLMatcher(tokenizer, text, log_level=0, limits=LLParserLimits(**LIMITS))
            first = matcher.deep_copy()  # this vocabulary may lack what the bytes of the trial have
            is_empty = not any(first.compute_bitmask())
            complaint = first.get_error() or ("NoExtension" if is_empty else "")
        if complaint:
            raise refusal(grammar, complaint)
        free = None
        if grammar.after is not None:
            key = (grammar.after, grammar.budget)
            free = self._free.setdefault(key, Free(self._tokenizer, tokenizer.tokenize_str, *key))
        return Compiled(matcher, free, self._tokenizer.eos_ids)

    def _llguidance_tokenizer(self) -> "LLTokenizer":
        with self._building:
            if self._theirs is None:
                self._theirs = llguidance_tokenizer(self._tokenizer)
            return self._theirs


def _translated(grammar: Grammar) -> str:
    """llguidance's own form of a grammar. Raises UserError."""
    from llguidance import LLMatcher

    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.text)
    value = parsed_json(grammar.text, grammar.name)
    if grammar.kind == "choice":
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(one) for one in value))
    schema = cleaned(value)
    if not isinstance(schema, dict):
        raise UserError(f"{grammar.name} is {grammar.text:.80}", why="it must be an object, or true")
    check_numbers(schema, grammar.name)
    is_free = grammar.whitespace == "free"
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema),  # of objects, it refuses numbers of more than 64 bits wherever they stand
        overrides={
            "lenient": False,
            "coerce_one_of": False,
            "whitespace_flexible": is_free,
            "whitespace_pattern": _WHITESPACE if is_free else None,
            "item_separator": "," if is_free else ", ",
            "key_separator": ":" if is_free else ": ",
        },
    )
