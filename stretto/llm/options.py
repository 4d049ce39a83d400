"""Names of the settings become objects: `ngram:max_n=3,nodes=8`, `ratio`, `fcfs`."""

from stretto.core.card import DRAFTERS, JUDGES, POLICIES, Exactness
from stretto.core.drafter import Drafter
from stretto.core.judge import Judge
from stretto.core.policy import DraftPolicy, OrderPolicy
from stretto.core.settings import Settings, read_draft
from stretto.engine.policies.draft_gain import Always, DraftGain


def make_drafting(draft: str | tuple[Drafter, DraftPolicy]) -> tuple[Drafter, DraftPolicy] | tuple[None, None]:
    """A drafter and its policy. `auto` drafts by n-gram while that is measured to be faster, and stops when it is not;
    a name drafts always."""
    if not isinstance(draft, str):
        return draft
    spec = read_draft(draft)
    if spec.name == "none":
        return None, None
    automatic = spec.name == "auto"
    drafter: Drafter = DRAFTERS.card("ngram" if automatic else spec.name).make(**spec.options)
    return drafter, DraftGain(spec.nodes) if automatic else Always(spec.nodes)


def make_judge(judge: str | Judge) -> Judge:
    """A judge by its name."""
    made: Judge = JUDGES.card(judge).make() if isinstance(judge, str) else judge
    return made


def make_order(order: str | OrderPolicy) -> OrderPolicy:
    """An order policy by its name."""
    made: OrderPolicy = POLICIES.card(order).make() if isinstance(order, str) else order
    return made


def approximations(settings: Settings) -> tuple[str, ...]:
    """What of these settings, by their cards, may change the output. Objects that a caller made are not known here."""
    draft, judge = settings.draft, settings.judge
    found = [] if settings.prefill == "exact" else [f"prefill {settings.prefill}"]
    name = read_draft(draft).name if isinstance(draft, str) else ""
    cards = [DRAFTERS.card(name)] if name in DRAFTERS.names() else []
    cards += [JUDGES.card(judge)] if isinstance(judge, str) else []
    found += [card.name for card in cards if card.exactness is Exactness.APPROXIMATE]
    return tuple(found)
