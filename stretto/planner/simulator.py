"""The scheduler with a clock and a cache of integers: the engine's own code, without a model.

`replay` feeds a trace of a real engine (`engine/trace.py`) to a scheduler and compares every plan. `simulate` invents
what a trace records: when requests come, how long steps take, how many tokens are accepted. Nothing here imports torch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields

from stretto.cache.ledger import Ledger, Room
from stretto.cache.prefix_cache import Reuse
from stretto.core.policy import Job, Record
from stretto.engine.scheduler import Limits, Plan, Policies, Scheduler, served
from stretto.engine.trace import ARRIVAL, Event, plan_event

_RECORD = tuple(one.name for one in fields(Record))


def replay(
    events: Iterable[Event], policies: Policies, limits: Limits, room: Room, reuse: Reuse | None = None
) -> list[tuple[Event, Event]]:
    """Per `schedule` of a trace, the plan that was recorded and the one that this scheduler makes.

    policies, reuse: as they were when the recording began, objects of their own. Raises AssertionError where memory was
    granted there and is not here, or the other way round.
    """
    ledger = Ledger(room, reuse)
    scheduler, jobs = Scheduler(ledger, policies, limits), dict[int, Job]()
    plans: list[tuple[Event, Event]] = []
    for event in events:
        kind, job = event["kind"], jobs.get(event.get("rid", -1))
        if kind == "add":
            tokens = None if event["tokens"] is None else list(event["tokens"])
            jobs[event["rid"]] = Job(**{name: event[name] for name in ARRIVAL}, tokens=tokens)
            scheduler.add(jobs[event["rid"]])
        elif kind == "schedule":
            for rid, drafts, ahead, acceptance in event["flags"]:
                jobs[rid].drafts, jobs[rid].ahead = drafts, ahead
                jobs[rid].acceptance = None if acceptance is None else tuple(acceptance)
            plan = plan_event(scheduler.schedule(event["now"], event["patience"]))
            plans.append(({name: event[name] for name in plan}, plan))
        elif kind == "learn":
            scheduler.learn(Record(**{name: event[name] for name in _RECORD}))
        elif kind == "grant":
            assert job is not None
            assert scheduler.grant(job, event["num_rows"]) == event["granted"], f"memory differs: {event}"
        else:
            assert job is not None and kind in ("advance", "preempt", "remove"), f"unknown event {event}"
            if kind == "advance":
                ledger.advance(job.rid, event["num_rows"])
                scheduler.advance(job, event["num_rows"], event["emitted"])
                if isinstance(job.tokens, list):
                    job.tokens += event["tokens"]
            elif kind == "preempt":
                scheduler.preempt(job, keep=event["keep"])
            else:
                scheduler.remove(job, keep=event["keep"], ended=event["ended"])
        ledger.check()
    return plans


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request to come. at: seconds; prompt, output: its tokens, at least one each, of which `limit` may be output.
    text: the tokens of its prompt, where texts are reused; those of its output are like no others."""

    at: float
    prompt: int
    output: int
    limit: int
    priority: int = 0
    tenant: str = ""
    text: Sequence[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the scheduler cannot know. seconds: how long a step takes, of its plan and the tokens drafted in it.
    accepted: how many of `n` drafted tokens stay, for a job; ready: what a lookup says of the tokens that it has for it
    (`Job.acceptance`). patience: of readers, in seconds."""

    seconds: Callable[[Plan, int], float]
    accepted: Callable[[Job, int], int] = lambda job, n: 0
    ready: Callable[[Job], tuple[float, ...] | None] = lambda job: None
    patience: float = 0.0


@dataclass(slots=True)
class Life:
    """One simulated request, in seconds. token_times: when each of its tokens was there."""

    job: Job
    output: int
    token_times: list[float] = field(default_factory=list)
    finished: float | None = None


def simulate(
    arrivals: Sequence[Arrival],
    policies: Policies,
    limits: Limits,
    room: Room,
    world: World,
    reuse: Reuse | None = None,
) -> list[Life]:
    """Run until all requests are done; they are numbered in order of arrival."""
    ledger = Ledger(room, reuse)
    scheduler = Scheduler(ledger, policies, limits)
    lives: list[Life] = []
    assert all(one.prompt >= 1 and one.output >= 1 and one.limit >= 1 for one in arrivals), "nothing to do"
    coming, now = deque(sorted(arrivals, key=lambda one: one.at)), 0.0
    while coming or scheduler.running or scheduler.waiting:
        while coming and (coming[0].at <= now or not (scheduler.running or scheduler.waiting)):
            one = coming.popleft()
            now = max(now, one.at)
            job = Job(len(lives), one.at, one.prompt, one.limit, one.priority, one.tenant, drafts=True, ahead=True)
            job.tokens = None if one.text is None else list(one.text)
            lives.append(Life(job, min(one.output, one.limit)))
            scheduler.add(job)
        for job in scheduler.running:
            job.acceptance = world.ready(job)
        plan = scheduler.schedule(now, world.patience)
        assert plan.shares, "a request that never fits"
        drafted = {rid: n for rid, n in plan.budgets.items() if scheduler.grant(lives[rid].job, n)}
        seconds = world.seconds(plan, sum(drafted.values()))
        now += seconds
        scheduler.learn(_advance(scheduler, ledger, plan, drafted, world, lives, now, seconds))
    return lives


def _advance(
    scheduler: Scheduler,
    ledger: Ledger,
    plan: Plan,
    drafted: dict[int, int],
    world: World,
    lives: Sequence[Life],
    now: float,
    seconds: float,
) -> Record:
    """Every share of a plan does what it was given."""
    emitted, rounds = dict[int, int](), list[tuple[int, int, tuple[int, ...]]]()
    for share in plan.shares:
        life, job = lives[share.job.rid], share.job
        tokens = plan.num_steps if share.is_last else 0
        if job.rid in drafted:
            accepted = min(world.accepted(job, drafted[job.rid]), drafted[job.rid])
            rounds.append((job.rid, drafted[job.rid], tuple(range(1, accepted + 1))))
            tokens += accepted
        tokens = min(tokens, life.output - job.output)
        rows = max(tokens, 1) if share.is_decode else share.num_rows
        ledger.advance(job.rid, rows)
        scheduler.advance(job, rows, tokens)
        if isinstance(job.tokens, list):
            job.tokens += [-1 - job.rid] * tokens
        life.token_times += [now] * tokens
        emitted[job.rid] = tokens
        if job.output == life.output:
            scheduler.remove(job, ended=True)
            life.finished = now
    return Record(
        seconds=seconds,
        num_seqs=len(plan.shares),
        num_rows=sum(share.num_rows for share in plan.shares) + sum(drafted.values()),
        is_decode=plan.is_decode,
        drafted=sum(drafted.values()),
        emitted=sum(emitted.values()),
        num_steps=plan.num_steps,
        rounds=tuple(rounds),
        contexts=plan.contexts,
        pairs=plan.pairs,
        served=served(plan, emitted),
    )
