"""How much memory this process may still take, and sizes as people write them."""

import ctypes
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

from stretto.core.errors import UserError

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DECIMAL = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?(?:i?b)?)", re.IGNORECASE)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping: of the machine, of every control group that this process is in
    (containers, batch systems, services) and of its own limit on addresses (`ulimit -v`), the least.

    root: where proc/ and sys/ are.
    """
    found = [*_of_machine(root), *_of_groups(root), *_of_limit(root)]
    return max(0, min(found)) if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_machine(root: Path) -> Iterator[int]:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            yield int(value.split()[0]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """What the groups leave. File pages that nobody uses count as used there, and are given back at once."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base, names = (
                root / "sys/fs/cgroup/memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        else:
            continue
        # In a container the path may be that of the host: then the group lies at the top of what can be seen.
        inside = Path(path.lstrip("/"))
        for place in dict.fromkeys((inside, *inside.parents)):
            yield from _of_group(base / place, *names)


def _of_group(group: Path, limit: str, usage: str, unused: str) -> Iterator[int]:
    most, used = _text(group / limit).strip(), _text(group / usage).strip()
    if not most.isdecimal() or not used.isdecimal():  # "max", or no such group
        return
    stat = dict(line.split(None, 1) for line in _text(group / "memory.stat").splitlines() if " " in line)
    yield int(most) - int(used) + int(stat.get(unused, 0))


def _of_limit(root: Path) -> Iterator[int]:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _text(root / "proc/self/statm").split()
    if most != resource.RLIM_INFINITY and pages:
        yield most - int(pages[0]) * resource.getpagesize()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # not there, or not to be read: it says nothing
        return ""


def return_free_memory() -> None:
    """Give the system what was freed and is kept by the C library for later: glibc keeps blocks of up to 32 MiB, in an
    arena per thread. Other C libraries do not, or not as much."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def parse_size(text: str, what: str) -> int:
    """Bytes of `8GiB`, `8G` (2^30), `8GB` (10^9), `512MiB` or a plain number. Raises UserError, naming `what`."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UserError(f"{what} is {text!r}", why="a size is a number with a unit", try_=f"{what} 8GiB")
    unit = found[2].lower()
    factor = _DECIMAL[unit] if unit in _DECIMAL else _UNITS[unit.rstrip("ib")]
    size = int(float(found[1]) * factor)
    if size < 1:
        raise UserError(f"{what} is {text!r}", why="it must be more than nothing", try_=f"{what} 8GiB")
    return size


def show_size(nbytes: int) -> str:
    """`2.25 GiB`."""
    for unit, width in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= width:
            return f"{nbytes / width:.2f} {unit}"
    return f"{max(0, nbytes)} bytes"
