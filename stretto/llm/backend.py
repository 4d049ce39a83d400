"""Choosing who computes the forward pass: native kernels where they can be built and hold the model's weights."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stretto.core.env import Env
from stretto.core.errors import RunError, UserError
from stretto.core.settings import Settings
from stretto.kernels.native.build import LEVELS, build, missing_features, supported_levels
from stretto.kernels.native.library import Team, load


@dataclass(frozen=True, slots=True)
class Choice:
    """threads: run natively on these; None = torch. why: why not natively, None if it is."""

    threads: Team | None
    why: str | None

    @property
    def name(self) -> str:
        """The backend in a few words: `native avx512, 2 threads` or `torch`."""
        if self.threads is None:
            return "torch"
        return f"native {self.threads.library.level}, {self.threads.num_threads} threads"


def choose(settings: Settings, codecs: Iterable[str], env: Env, team: Team | RunError | None = None) -> Choice:
    """Who runs a model whose matrices are stored in `codecs`.

    team: what `find_team` found, if it was asked. Raises UserError if what is asked for needs the native kernels, and
    they cannot be had.
    """
    if settings.backend == "torch":
        return Choice(None, "torch was asked for")
    if settings.dtype == "float32":
        return Choice(None, "float32 is the reference mode")
    team = team or find_team(settings, env)
    if isinstance(team, RunError):
        why: str | None = f"{team.error}: " + "; ".join(filter(None, (team.why, team.try_)))
    else:
        why = _no_layout(codecs, team)
        if why is None:
            return Choice(team, None)
    if settings.backend == "native":
        raise UserError("this model cannot run on the native kernels", why=why, try_="backend auto")
    if settings.prefill != "exact":
        raise UserError(f"prefill {settings.prefill} needs the native kernels", why=why, try_="prefill exact")
    return Choice(None, why)


def find_team(settings: Settings, env: Env, note: Callable[[str], None] | None = None) -> Team | RunError:
    """The team of this process (`thread_team`), or why there is none. note: gets one line when kernels are compiled."""
    try:
        return thread_team(env, settings.threads, note)
    except RunError as problem:
        return problem


def thread_team(env: Env, num_threads: int | None, note: Callable[[str], None] | None = None) -> Team:
    """The team of this process, with the kernels compiled for this CPU. Raises RunError if they cannot be.

    num_threads None: one per core that this process may use.
    """
    level = env.level or supported_levels()[0]
    if level not in supported_levels():
        lacks = f"this CPU lacks {' '.join(missing_features()[level])} for it" if level in LEVELS else "no such level"
        raise UserError(f"STRETTO_LEVEL={level}", why=f"{lacks}; it runs {', '.join(supported_levels())}")
    return _team(build(level, env.cache_dir, compiler=env.cxx, note=note), num_threads)


@cache
def _team(library: Path, num_threads: int | None) -> Team:
    return Team(load(library), num_threads)


def _no_layout(codecs: Iterable[str], threads: Team) -> str | None:
    missing = sorted(set(codecs) - set(threads.library.enum("Format")))
    return f"no native layout for {', '.join(missing)}" if missing else None
