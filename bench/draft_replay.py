"""Answers that are known, given once more to the draft policy with a clock that says what a table says: no noise.

The n-gram drafter and the policy are those of the engine; the model is the list of tokens that it emitted. What comes
out is how much a policy would have gained, and where it would have lost, on a machine on which rows cost what the table
says: its own, that of another record, or one that does not exist yet.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stretto.core.costs import Staircase
from stretto.core.drafter import Ask, Draft, Drafter, Round, Target, Verdict
from stretto.core.policy import Job, Record
from stretto.core.settings import read_draft
from stretto.engine.policies.draft.gain import Gain

LONGEST = 31  # tokens of a draft
AHEAD = 16  # most plain steps that run as one


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """rows: seconds of a step by its rows; call: seconds that every step, or several plain ones as one, take besides;
    ask: what a step with drafts takes on top of that."""

    rows: Mapping[int, float]
    call: float = 0.35e-3
    ask: float = 0.15e-3


def replay(
    answers: Mapping[str, tuple[Sequence[int], Sequence[int]]],
    machine: Machine,
    *,
    draft: str = "auto",
    is_fresh: bool = False,
) -> dict[str, float]:
    """Per answer, how many times faster than plain decoding it would have come.

    answers: prompt and output. is_fresh: drafter and policy know nothing of the answers before.
    """
    names, found = sorted(answers), dict[str, float]()
    random.Random(0).shuffle(names)
    drafter, policy = _drafting(draft, machine)
    for rid, name in enumerate(names):
        if is_fresh:
            drafter, policy = _drafting(draft, machine)
        found[name] = _answer(rid, *answers[name], machine, drafter, policy)
    return found


def _drafting(draft: str, machine: Machine) -> tuple[Drafter, Gain]:
    spec, policy = read_draft(draft), Gain(LONGEST)
    assert spec is not None
    policy.know({rows: seconds + machine.call for rows, seconds in machine.rows.items()})
    target = Target(model=None, context=1 << 16, max_seqs=1, max_rows=64, vocab_size=1 << 20)
    drafter: Drafter = spec.filler.make().build(target)
    return drafter, policy


def _answer(
    rid: int, prompt: Sequence[int], output: Sequence[int], machine: Machine, drafter: Drafter, policy: Gain
) -> float:
    stairs, left = Staircase(machine.rows), len(output) - 1
    plain = left * stairs.seconds(1) + -(-left // AHEAD) * machine.call
    drafter.admit(rid, prompt)
    drafter.observe([Round(rid, Draft(), Verdict((), tuple(output[:1])))])  # the prompt's last row gave it
    done, spent = 1, 0.0
    while done < len(output):
        rest = output[done:]
        draft = drafter.propose([Ask(rid, min(LONGEST, len(rest) - 1))])[0].chain()
        job = Job(rid, 0.0, len(prompt), len(output), output=done, drafts=True, acceptance=draft.acceptance or ())
        draft = draft.truncate(policy.budgets([job], LONGEST)[0])
        accepted = next((n for n, token in enumerate(draft.tokens) if token != rest[n]), len(draft))
        if len(draft):
            steps, emitted = 1, accepted + 1
            seconds = stairs.seconds(1 + len(draft)) + machine.call + machine.ask
            rounds = ((rid, len(draft), tuple(range(1, accepted + 1))),)
        else:
            steps = emitted = max(1, min(AHEAD, policy.plain_steps(1), len(rest)))
            seconds, rounds = steps * stairs.seconds(1) + machine.call, ()
        path = tuple(range(1, accepted + 1))
        drafter.observe([Round(rid, draft, Verdict(path, tuple(rest[:emitted])))])
        policy.learn(
            Record(
                seconds=seconds, num_seqs=1, num_rows=1 + len(draft), is_decode=True, drafted=len(draft),
                emitted=emitted, num_steps=steps, rounds=rounds,
            )
        )  # fmt: skip
        spent, done = spent + seconds, done + emitted
    drafter.release(rid, keep=True)
    return plain / spent
