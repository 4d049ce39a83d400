"""What the layers of a model and its judge are not able to do: refused by name, or done without and said."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from stretto.core.card import Can
from stretto.core.drafter import Needs
from stretto.core.errors import UserError
from stretto.core.judge import Judge
from stretto.core.sampling import Sampling
from stretto.engine.scheduler import Limits
from stretto.runner.kept import KeptModel
from stretto.runner.runner import Runner

if TYPE_CHECKING:
    from stretto.models.lm import LM


def check(model: "LM | KeptModel", max_seqs: int) -> None:
    """Raises UserError, which names the layer, for a model that an engine of `max_seqs` sequences cannot run."""
    for index, name, can in model.abilities:
        if Can.CAUSAL not in can:
            raise UserError(
                "this model cannot generate",
                why=f"layer {index} ({name}) is not causal: what it says of a token depends on later ones",
            )
        if Can.PACKED not in can and max_seqs > 1:
            raise UserError(
                f"this model cannot run {max_seqs} sequences at once",
                why=f"layer {index} ({name}) takes one sequence per call",
                try_="max_seqs=1",
            )


def check_sampling(judge: Judge, sampling: Sampling) -> None:
    """Raises UserError for a temperature that the judge cannot decide at."""
    if sampling.temperature and Can.SAMPLED not in judge.can:
        why = f"the judge {type(judge).__name__} decides at temperature 0 only"
        raise UserError(f"temperature {sampling.temperature} cannot be served", why=why, try_="temperature=0")


def reuses_prefixes(model: "LM | KeptModel", needs: Needs) -> bool:
    """Whether texts can go on from what earlier ones left: states can be shared, and no drafter needs hidden states of
    tokens that are not computed again."""
    return Can.SNAPSHOT in model.can and not needs.features


def limits(runner: Runner, judge: Judge, needs: Needs, extra: int) -> Limits:
    """What a scheduler may plan: plain steps in a row where nobody wants to see what lies between them. extra: rows
    that may ride along with a draft."""
    return Limits(
        max_rows=runner.max_rows,
        max_seqs=runner.sizes.max_seqs,
        runs_ahead=runner.runs_ahead and judge.head == "picks" and not needs.features,
        extra=extra,
    )


def notes(host_operations: Mapping[str, str], can: Can, *, drafts: bool) -> tuple[str, ...]:
    """Lines for the user. can: of the model and the judge together; drafts: whether drafts were asked for."""
    found = []
    if host_operations:
        first, reason = next(iter(host_operations.items()))
        found.append(
            f"{len(host_operations)} part(s) of the model run in Python between the native kernels: {first} {reason}"
        )
    if drafts and Can.CHAIN not in can:
        found.append("no drafts: a layer of the model or the judge cannot verify them")
    return tuple(found)


def where_parts_run(model: "LM", in_python: Mapping[str, str]) -> dict[str, str]:
    """How many mixers and channels of each kind run where. in_python: names of parts that have no native kernel."""
    found: dict[str, Counter[str]] = {}
    for i, block in enumerate(model.blocks):
        for role, part in (("mixer", block.mixer), ("channel", block.channel)):
            if part is None:
                continue
            name = f"blocks.{i}.{role}"
            is_native = not any(host == name or host.startswith(f"{name}.") for host in in_python)
            found.setdefault(type(part).__name__, Counter())["native" if is_native else "in Python"] += 1
    return {kind: ", ".join(f"{n} {where}" for where, n in places.items()) for kind, places in found.items()}
