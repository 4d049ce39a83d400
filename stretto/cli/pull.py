"""`stretto pull`: download a model once and check it."""

from dataclasses import dataclass

from stretto.cli._terminal import print_json
from stretto.core.env import read_env
from stretto.core.option import argument, option

EXAMPLES = ("stretto pull smollm2", "stretto pull qwen2.5-coder-0.5b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of `stretto pull`."""

    model: str = argument("an alias (see `stretto list model`), or a hub id with the [hub] extra")
    force: bool = option("download an alias again, even if it is there", default=False)
    json: bool = option("print one JSON object", default=False)


def run(options: Options) -> int:
    """Print where the model is; nothing is downloaded twice."""
    from stretto.hub.aliases import aliases
    from stretto.hub.models import pull, resolve

    env, alias = read_env(), aliases().get(options.model)
    path = (pull if options.force and alias else resolve)(options.model, env=env)
    if options.json:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        found = {"model": options.model, "path": str(path), "bytes": sum(file.stat().st_size for file in files)}
        print_json(found | ({"source": alias.source, "license": alias.license} if alias else {}))
    else:
        print(path)
    return 0
