"""Finding the model a user names: a path, an alias of a model that is fetched once, or a repository of a hub."""

import difflib
import importlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stretto.core.env import Env, expand_home
from stretto.core.errors import MissingDependency, RunError, UserError
from stretto.hub.aliases import Alias, aliases, is_whole, place

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w./-]+\.gguf)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]
_MODEL_SUFFIXES = (".gguf", ".safetensors", ".json")


def resolve(name: str, *, env: Env, progress: bool = True, known: Mapping[str, Alias] | None = None) -> Path:
    """The file or directory of a model: an existing path, else an alias (fetched if needed), else a hub id.

    known: the aliases (default `aliases()`). Raises UserError (exit code 2), RunError (1), MissingDependency (5).
    """
    known = aliases() if known is None else known
    path = Path(expand_home(name))
    if path.exists():
        return path
    if name in known:
        file = place(name, known[name], env)
        return file if is_whole(file, known[name]) else pull(name, env=env, progress=progress, known=known)
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
    """Fetch an alias into the cache, in full, and return its file. Progress, source and license go to stderr.

    What an earlier pull left unfinished is gone on with. Every part and the whole are checked by SHA-256.
    Raises UserError (unknown alias), RunError (offline, network, checksum, disk).
    """
    known = aliases() if known is None else known
    if name not in known:
        raise UserError(f"unknown alias {name!r}", try_=f"one of: {', '.join(sorted(known))}")
    from stretto.hub.pull import fetch_alias  # most starts find their file

    return fetch_alias(name, known[name], env=env, progress=progress)


def cached(env: Env) -> list[Path]:
    """Model files in the cache, sorted."""
    return sorted(p for p in (env.cache_dir / "models").glob("*/*") if p.is_file())


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
