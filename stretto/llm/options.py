"""Names at the border become objects: `--draft ngram:n=3,nodes=8`, `--judge ratio`."""

import inspect
from typing import TYPE_CHECKING

from stretto.core.card import CODECS, DRAFTERS, JUDGES, Exactness
from stretto.core.drafter import Drafter
from stretto.core.errors import UserError
from stretto.core.policy import DraftPolicy
from stretto.engine.policies.draft_gain import Always, DraftGain

if TYPE_CHECKING:
    from stretto.core.judge import Judge

DEFAULT_NODES = 8


def make_drafting(spec: str) -> tuple[Drafter, DraftPolicy] | None:
    """A drafter and its policy from `none`, `auto`, `NAME` or `NAME:key=value,...`; UserError for anything else.

    `auto` drafts by n-gram while that is measured to be faster, and stops when it is not. A name drafts always.
    `nodes` (the most draft tokens per step) belongs to the policy, all other keys to the drafter.
    """
    name, _, rest = spec.partition(":")
    options = _options(spec, rest)
    nodes = options.pop("nodes", DEFAULT_NODES)
    if not 1 <= nodes <= 63:
        raise UserError(f"--draft {spec}: nodes is {nodes}", why="a draft has 1 to 63 nodes")
    if name == "none":
        if rest:
            raise UserError(f"--draft {spec}: none takes no settings")
        return None
    automatic = name == "auto"
    card = DRAFTERS.card("ngram" if automatic else name)
    known = [p for p in inspect.signature(card.make).parameters]
    for key in options:
        if key not in known:
            raise UserError(
                f"--draft {spec}: {card.name} has no setting {key!r}", try_=f"one of nodes, {', '.join(known)}"
            )
    drafter: Drafter = card.make(**options)
    return drafter, DraftGain(nodes) if automatic else Always(nodes)


def make_judge(name: str) -> "Judge":
    """A judge by its name."""
    judge: Judge = JUDGES.card(name).make()
    return judge


def approximations(draft: object, judge: object, prefill: str, kv: str) -> tuple[str, ...]:
    """What of these settings, by their cards, may change the output. Objects that a caller made are not known here."""
    found = [] if prefill == "exact" else [f"prefill {prefill}"]
    if kv != "auto" and CODECS.card(kv).exactness is Exactness.APPROXIMATE:
        found.append(f"kv {kv}")
    name = draft.partition(":")[0] if isinstance(draft, str) else ""
    cards = [DRAFTERS.card(name)] if name in DRAFTERS.names() else []
    cards += [JUDGES.card(judge)] if isinstance(judge, str) else []
    found += [card.name for card in cards if card.exactness is Exactness.APPROXIMATE]
    return tuple(found)


def _options(spec: str, text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if not value.isascii() or not value.isdigit():
            raise UserError(f"--draft {spec}: {part!r} is not key=number", try_="for example ngram:max_n=3,nodes=8")
        found[key] = int(value)
    return found
