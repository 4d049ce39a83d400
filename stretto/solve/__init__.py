"""Test-time compute: several answers to one question, and which of them is right, under a budget of tokens and seconds.

    from stretto.solve import solve
    solve("smollm2", "What is 17 + 25?", search="vote:n=8", budget_tokens=1000).answer

A search (`searches/`) grows a tree of texts: it forks, scores and joins them (`group.py`) and says which answer it
takes. A scorer (`scorers/`) says how good a text is, an extractor (`extract.py`) what the answer in it is.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stretto.solve.options import SearchOptions
    from stretto.solve.outcome import Outcome
    from stretto.solve.run import run_search, solve

_HOMES = {"SearchOptions": "options", "Outcome": "outcome", "run_search": "run", "solve": "run"}

__all__ = ["Outcome", "SearchOptions", "run_search", "solve"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # loaded on first use: an event loop
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
