"""Names of the settings become objects: `ngram:max_n=3,nodes=8`, `ratio`, `priority:aging=30`, `lru`."""

from typing import TypeVar

from stretto.core.card import JUDGES, Exactness, Registry
from stretto.core.drafter import Drafter, DrafterConfig, Target
from stretto.core.policy import DraftPolicy
from stretto.core.settings import Settings, read_draft
from stretto.core.spec import read_spec
from stretto.engine.policies.draft.always import Always
from stretto.engine.policies.draft.gain import Gain

P = TypeVar("P")


def make_drafting(
    draft: str | tuple[DrafterConfig, DraftPolicy], target: Target
) -> tuple[Drafter, DraftPolicy] | tuple[None, None]:
    """A drafter for `target`, and its policy: as many tokens as pay, unless a name comes with a number of them."""
    if not isinstance(draft, str):
        return draft[0].build(target), draft[1]
    spec = read_draft(draft)
    if spec is None:
        return None, None
    config: DrafterConfig = spec.filler.make()
    drafter = config.build(target)
    if spec.nodes is None:
        return drafter, Gain()
    return drafter, Gain(spec.nodes) if spec.is_automatic else Always(spec.nodes)


def make_policy(value: str | P, registry: Registry, what: str) -> P:
    """A judge or a policy by its name, or the object that a caller made in place of it."""
    made: P = read_spec(value, registry, what).make() if isinstance(value, str) else value
    return made


def approximations(settings: Settings, *, kv_is_approximate: bool) -> tuple[str, ...]:
    """What of these settings, by their cards, may change the output. Objects that a caller made are not known here.

    kv_is_approximate: what the card of `settings.kv` says, which is not read here: codecs need torch."""
    draft, judge = settings.draft, settings.judge
    found = [] if settings.prefill == "exact" else [f"prefill {settings.prefill}"]
    if kv_is_approximate:
        found.append(f"kv {settings.kv}")
    spec = read_draft(draft) if isinstance(draft, str) else None
    cards = [spec.filler.card] if spec is not None else []
    cards += [read_spec(judge, JUDGES, "judge").card] if isinstance(judge, str) else []
    found += [card.name for card in cards if card.exactness is Exactness.APPROXIMATE]
    return tuple(found)
