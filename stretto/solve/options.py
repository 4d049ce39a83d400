"""`SearchOptions`: how a question is searched, in names and numbers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stretto.core.card import SCORERS, SEARCHES, Registry
from stretto.core.errors import UserError
from stretto.core.option import check_fields, option
from stretto.core.spec import read_spec
from stretto.solve.extract import Extract, read_extract

if TYPE_CHECKING:
    from stretto.solve.sockets import Scorer, Search


def _check_search(value: object, what: str) -> None:
    _check(value, what, SEARCHES, "Search")


def _check_scorer(value: object, what: str) -> None:
    _check(value, what, SCORERS, "Scorer")


def _check(value: object, what: str, registry: Registry, socket: str) -> None:
    """That it is a name with settings, or an object of the socket."""
    if isinstance(value, str):
        read_spec(value, registry, what)
        return
    from stretto.solve import sockets  # not where options are only read as text

    if not isinstance(value, getattr(sockets, socket)):
        raise UserError(f"{what} is {value!r:.80}", why=f"neither a name nor a {socket}", try_=registry.names()[0])


def _check_extract(value: object, what: str) -> None:
    if isinstance(value, str):
        read_extract(value, what)
    elif not callable(value):
        raise UserError(f"{what} is {value!r:.80}", why="neither a name nor a function", try_="last-number")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """From Python, objects may stand for names: a `Search`, a `Scorer`, a function text -> answer or None."""

    search: "str | Search" = option(
        "how the answer is searched, with settings: vote:n=16, ets:width=8,steps=6, seat, squeeze",
        default="vote",
        metavar="SPEC",
        kind=str,
        check=_check_search,
    )
    scorer: "str | Scorer" = option(
        "how good a text is, where a search asks: logprob, self (the model says), verifier (its arithmetic holds)",
        default="logprob",
        metavar="NAME",
        kind=str,
        check=_check_scorer,
    )
    extract: str | Extract = option(
        "the answer in a text: last-number, boxed, json:KEY, regex:PATTERN",
        default="last-number",
        metavar="SPEC",
        kind=str,
        check=_check_extract,
    )
    budget_tokens: int | None = option(
        "at most so many tokens are sampled, over all texts (default: no limit)", default=None, low=1, high=2**31
    )
    budget_seconds: float | None = option(
        "the answer is there after so many seconds (default: no limit)", default=None, low=1e-3, high=1e6
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def make_search(self) -> "Search":
        """The search."""
        if not isinstance(self.search, str):
            return self.search
        made: Search = read_spec(self.search, SEARCHES, "search").make()
        return made

    def make_scorer(self) -> "Scorer":
        """The scorer."""
        if not isinstance(self.scorer, str):
            return self.scorer
        made: Scorer = read_spec(self.scorer, SCORERS, "scorer").make()
        return made

    def make_extract(self) -> Extract:
        """The extractor."""
        return read_extract(self.extract) if isinstance(self.extract, str) else self.extract
