"""stretto: language models past the sequential bottleneck.

    from stretto import LLM, Sampling
    LLM("smollm2").generate(["The next voice enters"], Sampling(temperature=0, max_tokens=32))[0].text

The names below load on first use, so that `import stretto` (and `stretto --help`) costs no torch import.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "Grammar", "Sampling", "Settings", "UserError", "__version__"]

if TYPE_CHECKING:
    from stretto.core.errors import UserError
    from stretto.core.grammar import Grammar
    from stretto.core.sampling import Sampling
    from stretto.core.settings import Settings
    from stretto.llm import LLM, AsyncLLM

_HOMES = {
    "LLM": "stretto.llm",
    "AsyncLLM": "stretto.llm",
    "Grammar": "stretto.core.grammar",
    "Sampling": "stretto.core.sampling",
    "Settings": "stretto.core.settings",
    "UserError": "stretto.core.errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'stretto' has no attribute {name!r}")
