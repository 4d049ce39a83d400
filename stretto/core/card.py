"""Cards and registries: how a filler introduces itself, and how it is found.

A filler is one file in the folder of its socket and ends with a `CARD`. The folder is the registry: names come from
listing files, a file is imported only when it is asked for, and nothing is edited twice.
"""

import enum
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stretto.core.errors import UserError, near


class Can(enum.Flag):
    """What a filler is able to do. Tested both ways: a missing ability must raise the clear error."""

    CAUSAL = enum.auto()  # mixer: output t depends on inputs <= t only, so the engine may decode with it
    PACKED = enum.auto()  # mixer: several sequences in one call
    SNAPSHOT = enum.auto()  # mixer: its state can be copied, restored and shared
    CHAIN = enum.auto()  # mixer, drafter, judge: draft chains
    TREE = enum.auto()  # mixer, drafter, judge: draft trees
    DRAWN_TREE = enum.auto()  # judge: trees whose tokens were drawn from a law (others are trees of chosen tokens)
    BITWISE_CAUSAL = enum.auto()  # mixer: changing token t leaves outputs < t bit-identical (FFT forms do not)
    ENCODE = enum.auto()  # codec: can write
    EXACT_REENCODE = enum.auto()  # codec: encode(decode(p)) has the bytes of p
    NATIVE = enum.auto()  # codec: native kernels multiply with weights that are stored so
    KV = enum.auto()  # codec: keys and values can be stored in it, token by token (a PageFormat)
    SAMPLED = enum.auto()  # judge: works at temperature > 0


class Exactness(enum.Enum):
    """What a filler does to the output (see docs/ARCHITECTURE.md)."""

    EXACT = "exact"  # bit-identical to plain decoding in the same mode
    LOSSLESS = "lossless"  # same distribution, or same text for the same seed
    APPROXIMATE = "approximate"  # anything else: opt-in and labelled


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One filler. The catalogue page, the law tests and the help pages are made from these fields."""

    name: str  # the file's name
    make: Callable[..., Any]  # keyword arguments -> config or object; for mixers and channels a Config class
    idea: str  # one line, no full stop
    paper: str  # arXiv id, or the name of a format
    can: Can
    tiny: Mapping[str, Any] = field(default_factory=dict)  # arguments of `make` for tests, milliseconds to run
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # changes of `tiny` that laws run, too
    state: str = "none"  # what a sequence must carry, per layer
    cost: str = ""  # work, in the letters of core/shapes.py
    exactness: Exactness = Exactness.EXACT
    reads_model: bool = False  # drafter: it asks the target for parts of its model, which takes torch

    def tiny_module(self) -> Any:
        """The small module that law tests run (mixers and channels)."""
        return self.make(**self.tiny).build()

    def with_variants(self) -> list["Card"]:
        """This card, and one for each of its variants: what law tests run."""
        return [self] + [
            replace(self, name=f"{self.name} {name}", tiny={**self.tiny, **changes}, variants={})
            for name, changes in self.variants.items()
        ]


class Registry:
    """The fillers of one socket: the modules of `package` whose names do not start with an underscore."""

    def __init__(self, socket: str, package: str) -> None:
        self.socket, self.package = socket, package

    def names(self) -> list[str]:
        path = importlib.import_module(self.package).__path__
        return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))

    def card(self, name: str) -> Card:
        """Load one filler. An unknown name is a UserError with near matches; a broken filler shows its own error."""
        known = self.names()
        if name not in known:
            raise UserError(f"unknown {self.socket} {name!r}", try_=near(name, known))
        card: Card = importlib.import_module(f"{self.package}.{name}").CARD
        return card

    def cards(self, can: Can = Can(0)) -> list[Card]:
        """All cards with at least the abilities `can`, by name."""
        return [card for name in self.names() if can in (card := self.card(name)).can]


MIXERS = Registry("mixer", "stretto.mixers")
CHANNELS = Registry("channel", "stretto.channels")
CODECS = Registry("codec", "stretto.codecs")
DRAFTERS = Registry("drafter", "stretto.drafters")
JUDGES = Registry("judge", "stretto.engine.judges")
ORDERS = Registry("order", "stretto.engine.policies.order")
VICTIMS = Registry("victim", "stretto.engine.policies.victim")
CHUNKS = Registry("chunk", "stretto.engine.policies.chunk")
DRAFT_POLICIES = Registry("budget", "stretto.engine.policies.draft")
LENGTHS = Registry("length", "stretto.engine.policies.length")
EVICTS = Registry("evict", "stretto.cache.evict")
SEARCHES = Registry("search", "stretto.solve.searches")
SCORERS = Registry("scorer", "stretto.solve.scorers")
ROUTES = Registry("route", "stretto.serve.router.policies")
REGISTRIES = (
    MIXERS, CHANNELS, CODECS, DRAFTERS, JUDGES, ORDERS, VICTIMS, CHUNKS, DRAFT_POLICIES, LENGTHS, EVICTS, SEARCHES,
    SCORERS, ROUTES,
)  # fmt: skip
