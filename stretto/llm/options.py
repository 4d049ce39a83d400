"""Names at the border become objects: `--draft ngram:n=3,nodes=8`, `--judge ratio`."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stretto.core.card import DRAFTERS, JUDGES, ORDERS, Card, Exactness
from stretto.core.drafter import DrafterConfig
from stretto.core.errors import UserError
from stretto.core.policy import DraftPolicy, OrderPolicy
from stretto.engine.policies.draft.always import Always
from stretto.engine.policies.draft.gain import Gain

if TYPE_CHECKING:
    from stretto.core.judge import Judge

DEFAULT_NODES = 8


def make_drafting(spec: str) -> tuple[DrafterConfig, DraftPolicy] | None:
    """A drafter and its policy from `none`, `auto`, `NAME` or `NAME:key=value,...`; UserError for anything else.

    `auto` drafts by n-gram while that is measured to be faster, and stops when it is not. A name drafts always.
    `nodes` (the most draft tokens per step) belongs to the policy, all other keys to the drafter.
    """
    name, _, rest = spec.partition(":")
    if name == "none":
        if rest:
            raise UserError(f"--draft {spec}: none takes no settings")
        return None
    options = dict(part.partition("=")[::2] for part in filter(None, rest.split(",")))
    nodes = _typed("--draft", spec, "nodes", options.pop("nodes", str(DEFAULT_NODES)), int)
    if not 1 <= nodes <= 63:
        raise UserError(f"--draft {spec}: nodes is {nodes}", why="a draft has 1 to 63 nodes")
    automatic = name == "auto"
    card = DRAFTERS.card("ngram" if automatic else name)
    config: DrafterConfig = card.make(**_settings("--draft", spec, card, options, "nodes"))
    return config, Gain(nodes) if automatic else Always(nodes)


def make_order(spec: str) -> OrderPolicy:
    """An order policy from `NAME` or `NAME:key=value,...`."""
    name, _, rest = spec.partition(":")
    card = ORDERS.card(name)
    options = dict(part.partition("=")[::2] for part in filter(None, rest.split(",")))
    policy: OrderPolicy = card.make(**_settings("--order", spec, card, options))
    return policy


def make_judge(name: str) -> "Judge":
    """A judge by its name."""
    judge: Judge = JUDGES.card(name).make()
    return judge


def approximations(draft: object, judge: object, prefill: str) -> tuple[str, ...]:
    """What of these settings, by their cards, may change the output. Objects that a caller made are not known here."""
    found = [] if prefill == "exact" else [f"prefill {prefill}"]
    name = draft.partition(":")[0] if isinstance(draft, str) else ""
    cards = [DRAFTERS.card(name)] if name in DRAFTERS.names() else []
    cards += [JUDGES.card(judge)] if isinstance(judge, str) else []
    found += [card.name for card in cards if card.exactness is Exactness.APPROXIMATE]
    return tuple(found)


def _settings(flag: str, spec: str, card: Card, options: Mapping[str, str], *more: str) -> dict[str, Any]:
    """Settings of a filler, of the types that its `make` declares. more: names that somebody else takes."""
    known = inspect.signature(card.make, eval_str=True).parameters
    for key in options:
        if key not in known:
            names = ", ".join((*more, *known))
            raise UserError(f"{flag} {spec}: {card.name} has no setting {key!r}", try_=f"one of {names}")
    return {key: _typed(flag, spec, key, text, known[key].annotation) for key, text in options.items()}


def _typed(flag: str, spec: str, key: str, text: str, kind: Any) -> Any:
    """`text` as an int, float, bool or str."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text]
        if kind is int and not (text.isascii() and text.isdigit()):
            raise ValueError
        return kind(text)
    except (ValueError, KeyError):
        what = {int: "number", float: "number", bool: "true|false"}.get(kind, "text")
        raise UserError(f"{flag} {spec}: {f'{key}={text}'!r} is not key={what}", try_=f"{key}={what}") from None
