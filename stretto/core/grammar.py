"""`Grammar`: what a text must look like, as it was asked for. No parser here: `stretto.text.grammar` compiles it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from stretto.core.errors import UserError
from stretto.core.tree import Tree

Kind = Literal["json_schema", "regex", "lark", "choice"]
Whitespace = Literal["one_line", "free"]
MAX_BYTES, MAX_DEPTH, MAX_CHOICES, MAX_AFTER = 64 << 10, 64, 1024, 256
_NAMES: Mapping[Kind, str] = {
    "json_schema": "the JSON schema", "regex": "the regular expression", "lark": "the Lark grammar",
    "choice": "the list of choices",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Grammar:
    """Texts of one form. Make it with `json_schema`, `json_object`, `regex`, `lark` or `choice`.

    kind, text: a JSON schema, a regular expression, a Lark grammar, or a JSON list of strings. after: the grammar
    begins behind this text of the output (`</think>`); what comes before is free, but cannot end. budget: at most so
    many tokens of output before `after` is written. whitespace: of JSON, `one_line` writes ", " and ": " and nothing
    else, which lets most punctuation be forced; `free` allows up to 24 spaces and line ends between tokens.
    shows: special tokens that belong to the text, where decoding leaves out others.

    A regular expression matches the whole text, and has neither look-around nor back-references. Raises UserError for
    what is too large or damaged.
    """

    kind: Kind
    text: str
    after: str | None = None
    budget: int | None = None
    whitespace: Whitespace = "one_line"
    shows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_text(self.text, self.name, MAX_BYTES)
        if self.kind in ("json_schema", "choice"):
            parsed_json(self.text, self.name)
        if self.after is not None:
            _check_text(self.after, "the text that a grammar begins after", MAX_AFTER)
            if not self.after:
                raise UserError("a grammar cannot begin after an empty text", try_="after=None")
        if self.budget is not None and (self.after is None or isinstance(self.budget, bool) or self.budget < 0):
            raise UserError(
                f"the budget before a grammar is {self.budget!r}",
                why="it is a number of tokens, from 0, before `after`",
            )
        if self.whitespace not in ("one_line", "free"):
            raise UserError(f"whitespace is {self.whitespace!r}", why="it must be one_line or free")

    @property
    def name(self) -> str:
        """How messages call it."""
        return _NAMES[self.kind]

    @staticmethod
    def json_schema(schema: "str | bool | Mapping[str, Any]", **options: Any) -> "Grammar":
        """JSON that fulfils a schema, given as a value or as JSON text. options: `after`, `budget`, `whitespace`."""
        text = schema if isinstance(schema, str) else json_text(schema, _NAMES["json_schema"])
        return Grammar("json_schema", text, **options)

    @staticmethod
    def json_object(**options: Any) -> "Grammar":
        """Any JSON object."""
        return Grammar("json_schema", '{"type": "object"}', **options)

    @staticmethod
    def regex(pattern: str, **options: Any) -> "Grammar":
        """Texts that a regular expression matches as a whole (syntax of Rust's `regex`)."""
        return Grammar("regex", pattern, **options)

    @staticmethod
    def lark(text: str, **options: Any) -> "Grammar":
        """Texts of a context-free grammar in llguidance's variant of Lark, from its rule `start`."""
        return Grammar("lark", text, **options)

    @staticmethod
    def choice(choices: Sequence[str], **options: Any) -> "Grammar":
        """One of these texts."""
        if isinstance(choices, str) or not all(isinstance(one, str) and one for one in choices):
            raise UserError("choices must be texts that are not empty", why=f"got {choices!r:.80}")
        if not 1 <= len(choices) <= MAX_CHOICES:
            raise UserError(f"{len(choices):,} choices", why=f"it must be 1 to {MAX_CHOICES:,}")
        return Grammar("choice", json_text(list(choices), _NAMES["choice"]), **options)


class TokenMatcher(Protocol):
    """A grammar at work on the output of one request. It stands behind the last token that was accepted.

    A mask is a vocabulary in bits: bit t % 8 of byte t // 8 says whether token t may follow.
    """

    @property
    def is_over(self) -> bool:
        """Whether the text is complete and nothing can follow: the sequence ends, with or without an end token."""

    def allowed(self) -> bytes:
        """The mask of the next token. Raises UserError where the grammar became too complex."""

    def masks(self, tokens: Sequence[int], tree: Tree) -> list[bytes | None]:
        """Per row of a draft tree the mask of the token after it; None after a row that the grammar forbids.

        tokens: of rows 1, 2, ... The place does not change. Raises UserError as `allowed` for row 0 alone.
        """

    def legal(self, tokens: Sequence[int], tree: Tree) -> list[int]:
        """The drafted rows (1, 2, ...) that the grammar allows, in order; with every row those that lead to it."""

    def forced(self, limit: int) -> tuple[int, ...]:
        """The tokens that must follow, at most `limit` of them: an offer, for `allowed` says the same one by one."""

    def accept(self, tokens: Sequence[int]) -> None:
        """These tokens follow. Raises UserError for one that is not allowed; those before it are accepted."""

    def rollback(self, num_tokens: int) -> None:
        """The last `num_tokens` tokens were not accepted after all."""


def parsed_json(text: str, what: str) -> Any:
    """A JSON document of at most `MAX_DEPTH` levels. Raises UserError, which starts with `what`."""
    depth = json_depth(text)
    if depth > MAX_DEPTH:
        raise UserError(f"{what} has {depth} levels", why=f"at most {MAX_DEPTH} are taken")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError as problem:
        raise UserError(f"{what} is not JSON", why=str(problem)) from None


def json_depth(text: str) -> int:
    """Levels of brackets in a JSON text, outside of its strings."""
    depth = most = 0
    is_string = is_escaped = False
    for char in text:
        if is_string:
            is_string = is_escaped or char != '"'
            is_escaped = char == "\\" and not is_escaped
        elif char == '"':
            is_string = True
        elif char in "[{":
            depth += 1
            most = max(most, depth)
        elif char in "]}":
            depth -= 1
    return most


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def json_text(value: Any, what: str) -> str:
    """A value as JSON. Raises UserError, which starts with `what`, for one that JSON cannot say."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise UserError(f"{what} is not JSON", why=str(problem)) from None


def _check_text(text: Any, what: str, most: int) -> None:
    if not isinstance(text, str):
        raise UserError(f"{what} is {text!r:.80}", why="it must be a text")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise UserError(f"{what} is not valid Unicode", why="it holds half of a surrogate pair") from None
    if size > most:
        raise UserError(f"{what} has {size:,} bytes", why=f"at most {most:,} are taken")
